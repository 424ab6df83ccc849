"""A locked file is free again when its holder closes it."""

import fcntl
import threading

from jaxllm.checkpointing.file_lock import claim, is_claimed


def test_only_one_can_claim_a_file(tmp_path):
    file = tmp_path / "lock"
    with file.open("a") as first:
        assert claim(first)
        with file.open("a") as second:
            assert not claim(second)
    with file.open("a") as third:
        assert claim(third)


def test_looking_at_a_lock_does_not_take_it(tmp_path):
    file = tmp_path / "lock"
    assert not is_claimed(file)
    with file.open("a") as holder:
        assert not is_claimed(file)
        assert claim(holder)
        assert is_claimed(file)
    assert not is_claimed(file)


def test_a_file_can_be_claimed_while_another_process_looks_at_it(tmp_path):
    file = tmp_path / "lock"
    file.touch()
    with file.open("rb") as looking, file.open("a") as stream:
        fcntl.flock(looking, fcntl.LOCK_SH)
        end = threading.Timer(0.05, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        end.start()
        assert claim(stream)
        end.join()
