"""The lease: one holder at a time, and a dead holder loses it."""

import threading

import pytest
from memory_store import memory_store

from jaxllm.errors import UserError
from jaxllm.storage import lease
from jaxllm.storage.lease import LeaseHeldError, is_alive, leased
from jaxllm.storage.paths import file_system, open_path


@pytest.fixture
def file(monkeypatch):
    for name, seconds in {"BEAT_S": 0.05, "LEAST_WAIT_S": 1.0, "SETTLE_S": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    with memory_store():
        yield open_path("gs://bucket/run") / ".lock"


def test_a_second_holder_is_refused_while_the_first_lives(file):
    with leased(file, "process 1 on a"):
        with pytest.raises(LeaseHeldError, match="process 1 on a"), leased(file, "process 2 on b"):
            pass
        assert is_alive(file)
    assert not file.exists()
    assert not is_alive(file)
    with leased(file, "process 2 on b"):
        assert file.read_text().startswith("process 2 on b\n")


def test_the_lease_of_a_dead_holder_is_taken(file):
    file.write_text("process 1 on a\nabc\n7")
    with leased(file, "process 2 on b"):
        assert file.read_text().startswith("process 2 on b\n")


def test_of_two_at_the_same_time_at_most_one_gets_it(file):
    both, held = threading.Barrier(2), []

    def take(name: str) -> None:
        both.wait()
        try:
            with leased(file, name):
                held.append(name)
                threading.Event().wait(0.5)
        except LeaseHeldError:
            pass

    threads = [threading.Thread(target=take, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) <= 1


def test_a_holder_that_lost_its_lease_says_so_and_leaves_it(file):
    other = "process 2 on b\nabc\n0"
    with leased(file, "process 1 on a") as check:
        check()
        file.write_text(other)  # as after a silence of this process
        threading.Event().wait(0.5)
        with pytest.raises(UserError, match=r"^gs://bucket/run/.lock .* another run took it .*$"):
            check()
        assert file.read_text() == other
    assert file.read_text() == other


def test_an_object_that_appears_meanwhile_is_not_overwritten(file, monkeypatch):
    other = "process 2 on b\nabc\n0"
    monkeypatch.setattr(lease, "_remove_dead", lambda file: file.write_text(other))
    with pytest.raises(LeaseHeldError, match="process 2 on b"):
        leased(file, "process 1 on a").__enter__()
    assert file.read_text() == other


def test_a_store_that_cannot_be_written_is_one_line(file, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden\nmore")

    monkeypatch.setattr(type(file_system(str(file))), "pipe_file", refuse)
    with pytest.raises(UserError, match=r"gs://bucket/run cannot be written: Forbidden$"):
        leased(file, "x").__enter__()
