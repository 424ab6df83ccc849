"""Failing together: what a process tells the others, and what it does when another one fails."""

import threading
from types import SimpleNamespace

import jax
import pytest

from jaxllm.distributed import failing
from jaxllm.distributed.failing import ENDING, FAILURE, FailedElsewhereError, failing_together


class Ended(BaseException):
    """In place of the end of the process."""


class Coordinator:
    """The key-value store of two processes."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if key in self.values and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def key_value_try_get(self, key: str) -> str:
        if key not in self.values:
            raise RuntimeError("NOT_FOUND")
        return self.values[key]

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [pair for pair in self.values.items() if pair[0].startswith(prefix)]


@pytest.fixture
def coordinator(monkeypatch) -> Coordinator:
    found = Coordinator()

    def end(status: int) -> None:
        raise Ended(status)

    job = SimpleNamespace(client=found, process_id=0, num_processes=2)
    monkeypatch.setattr(failing, "joined_job", lambda: job)
    monkeypatch.setattr(failing.os, "_exit", end)
    monkeypatch.setattr(failing, "POLL_S", 0)
    monkeypatch.setattr(failing, "_ending", threading.RLock())
    monkeypatch.setattr(failing, "_reports", [lambda error: (f"it was {error}", 2)])
    return found


def test_alone_an_error_is_raised_as_usual():
    with pytest.raises(ZeroDivisionError), failing_together():
        raise ZeroDivisionError


def test_a_failure_is_told_and_the_others_are_waited_for(coordinator):
    coordinator.values[f"{ENDING}1"] = ""  # process 1 has read it already
    with pytest.raises(Ended, match="2"), failing_together():
        raise OSError("the disk")
    assert coordinator.values == {
        FAILURE: "0\n2\nit was the disk",
        f"{ENDING}0": "",
        f"{ENDING}1": "",
    }


def test_the_process_that_knows_why_is_waited_for(coordinator, monkeypatch, capsys):
    def sleep(seconds: float) -> None:  # process 1 is slower
        coordinator.values |= {FAILURE: "1\n2\nno such folder", f"{ENDING}1": ""}

    monkeypatch.setattr(failing.time, "sleep", sleep)
    with pytest.raises(Ended, match="2"), failing_together():
        raise FailedElsewhereError("process 1 failed")
    assert capsys.readouterr().err == "jaxllm: process 1 failed: no such folder\n"


def test_a_reason_that_never_comes_is_not_waited_for_for_good(coordinator, monkeypatch):
    monkeypatch.setattr(failing, "WAIT_S", 0)
    with pytest.raises(Ended, match="2"), failing_together():
        raise FailedElsewhereError("process 1 failed")
    assert coordinator.values[FAILURE] == "0\n2\nit was process 1 failed"


def test_a_failure_needs_no_devices(coordinator, monkeypatch):
    """To look for the devices of a job is to wait until all of its processes do."""
    for name in ("devices", "process_index", "process_count"):
        monkeypatch.setattr(jax, name, lambda: pytest.fail("waits for the other processes"))
    test_a_failure_is_told_and_the_others_are_waited_for(coordinator)


def test_ctrl_c_while_the_others_are_waited_for_keeps_the_status(coordinator, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(failing.time, "sleep", interrupt)
    with pytest.raises(Ended, match="2"):
        failing.fail(OSError("the disk"))


def test_only_the_first_failure_is_told(coordinator, capsys):
    """The failure of another process may be why this one fails, such as at a closed connection."""
    coordinator.values |= {FAILURE: "1\n70\nanother", f"{ENDING}1": ""}
    with pytest.raises(Ended, match="70"):
        failing.fail(OSError("the connection"))
    assert coordinator.values[FAILURE].endswith("another")
    assert capsys.readouterr().err == "jaxllm: process 1 failed: another\n"


def test_the_failure_of_another_process_ends_this_one(coordinator, capsys):
    coordinator.values |= {FAILURE: "1\n70\ntwo\nlines", f"{ENDING}1": ""}
    with pytest.raises(Ended, match="70"):
        failing._wait_for_failure(threading.Event())
    lines = [f"jaxllm: process 1 failed: {line}\n" for line in ("two", "lines")]
    assert capsys.readouterr().err == "".join(lines)


def test_an_error_of_the_coordinator_does_not_end_the_watch(coordinator, monkeypatch):
    coordinator.values |= {FAILURE: "1\n70\nanother", f"{ENDING}1": ""}
    errors = [RuntimeError("UNAVAILABLE: for a moment")]
    get = coordinator.key_value_try_get

    def get_later(key: str) -> str:
        if errors:
            raise errors.pop()
        return get(key)

    monkeypatch.setattr(coordinator, "key_value_try_get", get_later)
    with pytest.raises(Ended, match="70"):
        failing._wait_for_failure(threading.Event())


def test_a_report_that_fails_ends_all_the_same(coordinator, monkeypatch):
    def report(error: BaseException) -> tuple[str, int]:
        raise BrokenPipeError

    coordinator.values[f"{ENDING}1"] = ""
    monkeypatch.setattr(failing, "_reports", [report])
    with pytest.raises(Ended, match="70"):
        failing.fail(OSError("the disk"))
    assert coordinator.values[FAILURE] == "0\n70\nOSError: the disk"


def test_a_second_failure_in_one_thread_does_not_wait_for_the_first(coordinator):
    coordinator.values[f"{ENDING}1"] = ""
    failed = []

    def fail_twice() -> None:
        for _ in range(2):
            with pytest.raises(Ended):
                failing.fail(OSError("the disk"))
            failed.append(True)

    thread = threading.Thread(target=fail_twice, daemon=True)
    thread.start()
    thread.join(5)
    assert failed == [True, True]


def test_an_end_flushes_what_it_can(coordinator, monkeypatch):
    def refuse() -> None:
        raise OSError("no space left")

    flushed = []
    coordinator.values[f"{ENDING}1"] = ""
    monkeypatch.setattr(failing, "_flushes", [refuse, lambda: flushed.append(True)])
    with pytest.raises(Ended, match="2"):
        failing.fail(OSError("the disk"))
    assert flushed == [True]


def test_a_process_that_has_left_waits_no_longer(coordinator):
    left = threading.Event()
    left.set()
    failing._wait_for_failure(left)
    assert coordinator.values == {}


def test_a_coordinator_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(failing, "ANSWER_S", 0.05)
    never = threading.Event()
    assert failing._soon(never.wait) is None
    assert failing._soon(lambda: 1 / 0) is None
    monkeypatch.setattr(failing, "ANSWER_S", 60)
    assert failing._soon(lambda: "an answer") == "an answer"
    never.set()
