"""The lock of a run's folder: two runs that write into one would ruin each other's checkpoints."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from jaxllm.checkpointing.file_lock import claim
from jaxllm.train.config import ConfigError

NAME = ".lock"  # in the folder of a run while it runs; its text says who runs


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context in which no other run can use the folder, which is created if there is none.

    In a multi-host run, process 0 holds the lock for all.

    Raises:
        ConfigError: another run uses the folder.
    """
    if jax.process_index() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / NAME
    stream = file.open("a+", encoding="utf-8")
    try:
        if not claim(stream) or not _is_still(file, stream.fileno()):
            raise ConfigError(f"{folder} is in use by another run ({_holder(file)})")
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # the run was refused before it wrote anything
                folder.rmdir()
    finally:
        with suppress(OSError):  # a full disk, which was reported when it mattered
            stream.close()


def _is_still(file: Path, handle: int) -> bool:
    """Whether the locked file still has its name: a run that ends removes it."""
    try:
        return os.path.samestat(file.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(encoding="utf-8") or "starting"
    return "ending"
