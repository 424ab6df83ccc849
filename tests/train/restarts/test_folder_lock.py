"""The lock of a run's folder: one holder, who is named, and no trace of it afterwards."""

import os

import pytest
from memory_store import memory_store

from jaxllm.errors import UserError
from jaxllm.storage import lease
from jaxllm.storage.paths import open_path
from jaxllm.train.config import ConfigError
from jaxllm.train.restarts.folder_lock import NAME, is_running, locked, run_folder


def test_a_second_run_is_refused_and_told_who_runs(tmp_path):
    folder = tmp_path / "runs" / "a"
    with locked(folder):
        holder = f"in use by another run .process {os.getpid()} on "
        with pytest.raises(ConfigError, match=holder), locked(folder):
            pass
        (folder / "config.yaml").touch()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    with locked(folder):
        pass


def test_a_folder_that_orbax_cannot_take_is_refused():
    with pytest.raises(UserError, match="is not UTF-8"):
        run_folder("runs/\udcff")


def test_a_lock_that_a_killed_run_left_is_taken_over(tmp_path):
    (tmp_path / NAME).write_text("process 1 on elsewhere")
    with locked(tmp_path):
        assert (tmp_path / NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_that_was_created_for_nothing_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_removes_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Between opening and locking; a third run may have the new file of that name."""

    def claim(stream: object) -> bool:
        (tmp_path / NAME).unlink()
        return True

    monkeypatch.setattr("jaxllm.train.restarts.folder_lock.claim", claim)
    with pytest.raises(ConfigError, match=r"in use by another run \(ending\)"), locked(tmp_path):
        pass


def test_a_folder_in_a_bucket_is_locked_too(monkeypatch):
    for name, seconds in {"BEAT_S": 0.05, "LEAST_WAIT_S": 1.0, "SETTLE_S": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    with memory_store():
        folder = open_path("gs://bucket/run")
        with locked(folder):
            assert is_running(folder)
            holder = f"gs://bucket/run is in use by another run .process {os.getpid()} on "
            with pytest.raises(ConfigError, match=holder), locked(folder):
                pass
        assert not is_running(folder)


def test_a_run_that_is_running_is_seen(tmp_path):
    with locked(tmp_path):
        assert is_running(tmp_path)
    assert not is_running(tmp_path)
