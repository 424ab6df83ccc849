"""The mirror: what changed is copied, in time and at the end, and errors are said."""

import time

import pytest
from memory_store import memory_store

from jaxllm.errors import UserError
from jaxllm.storage import mirror
from jaxllm.storage.mirror import Mirror, copy_folder, move
from jaxllm.storage.paths import open_path


@pytest.fixture
def remote():
    with memory_store():
        yield open_path("gs://bucket/run")


def test_what_changes_is_copied_and_the_folder_is_removed(remote):
    (remote / "metrics.jsonl").write_text("old\n")
    (remote / "other").write_text("not fetched")
    with Mirror(remote, ("*.jsonl",)) as copies:
        assert [path.name for path in copies.local.iterdir()] == ["metrics.jsonl"]
        with (copies.local / "metrics.jsonl").open("a") as file:
            file.write("new\n")
        (copies.local / "inner").mkdir()
        (copies.local / "inner" / "x").write_text("x")
        (copies.local / ".unfinished.png").write_text("half")
        copies.copy()
        assert (remote / "metrics.jsonl").read_text() == "old\nnew\n"
        (copies.local / "last").write_text("at the end")
    assert (remote / "last").read_text() == "at the end"
    assert (remote / "inner" / "x").read_text() == "x"
    assert not (remote / ".unfinished.png").exists()
    assert not copies.local.parent.exists()


def test_a_thread_copies_now_and_then(remote, monkeypatch):
    monkeypatch.setattr(mirror, "EVERY_S", 0.01)
    with Mirror(remote) as copies:
        (copies.local / "a").write_text("a")
        deadline = time.monotonic() + 10
        while not (remote / "a").exists():
            assert time.monotonic() < deadline


def test_only_what_changed_is_copied(remote, monkeypatch):
    with Mirror(remote) as copies:
        (copies.local / "a").write_text("a")
        copies.copy()
        (remote / "a").write_text("changed there")
        copies.copy()
        assert (remote / "a").read_text() == "changed there"


def test_an_error_is_one_line_and_the_local_folder_is_removed(remote, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("Forbidden\nmore")

    copies = Mirror(remote)
    (copies.local / "a").write_text("a")
    monkeypatch.setattr(type(remote), "write_bytes", refuse)
    with pytest.raises(UserError, match=r"gs://bucket/run/a cannot be written: Forbidden$"):
        copies.close()
    assert not copies.local.parent.exists()


def test_a_folder_is_copied_whole(remote, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("b")
    copy_folder(tmp_path, remote / "origin")
    assert (remote / "origin" / "a" / "b").read_text() == "b"


def test_a_folder_is_moved_whole(remote, tmp_path):
    (remote / "4" / "model" / "a").write_text("a")
    (remote / "4" / "b").write_text("b")
    (remote / "40" / "c").write_text("c")
    move(remote / "4", remote / "aside" / "4")
    assert (remote / "aside" / "4" / "model" / "a").read_text() == "a"
    assert (remote / "aside" / "4" / "b").read_text() == "b"
    assert not (remote / "4").exists()
    assert (remote / "40" / "c").read_text() == "c"
    (tmp_path / "4").mkdir()
    move(tmp_path / "4", tmp_path / "5")
    assert (tmp_path / "5").is_dir()
