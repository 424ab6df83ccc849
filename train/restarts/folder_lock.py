"""The lock of a run's folder: two runs that write into one would ruin each other's checkpoints."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from jaxllm.checkpointing.file_lock import claim, is_claimed
from jaxllm.storage.lease import LeaseHeldError, is_alive, leased
from jaxllm.storage.orbax_s3 import S3, use_s3
from jaxllm.storage.paths import absolute_path, check_is_utf8, is_remote, to_address
from jaxllm.train.config import ConfigError

NAME = ".lock"  # in the folder of a run while it runs; its text says who runs


def run_folder(output: str) -> Any:
    """Returns the folder of a run, on this machine or on an object store.

    Raises:
        MissingPackageError: the package for it is not installed.
        UserError: the path is not UTF-8, or this version of Orbax cannot write there.
    """
    if is_remote(output) and to_address(output).startswith(S3):
        use_s3()
    check_is_utf8(output)
    return absolute_path(output)


def is_running(folder: Any) -> bool:
    """Whether a run uses the folder; on an object store this may take half a minute."""
    file = folder / NAME
    return is_alive(file) if is_remote(folder) else is_claimed(file)


@contextmanager
def locked(folder: Any) -> Iterator[Callable[[], None]]:
    """Context in which no other run can use the folder, which is created if there is none.

    In a multi-host run, process 0 holds the lock for all. On an object store another run may take
    the lock of one that was silent for half a minute.

    Yields:
        A function that raises UserError once this process has found that it lost the lock.

    Raises:
        ConfigError: another run uses the folder.
    """
    if jax.process_index() > 0:
        yield lambda: None
        return
    if is_remote(folder):
        try:
            with leased(folder / NAME, _holder_text()) as check:
                yield check
        except LeaseHeldError as error:
            raise ConfigError(f"{folder} is in use by another run ({error})") from None
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / NAME
    stream = file.open("a+", encoding="utf-8")
    try:
        if not claim(stream) or not _is_still(file, stream.fileno()):
            raise ConfigError(f"{folder} is in use by another run ({_holder(file)})")
        stream.truncate(0)
        stream.write(_holder_text())
        stream.flush()
        try:
            yield lambda: None
        finally:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # the run was refused before it wrote anything
                folder.rmdir()
    finally:
        with suppress(OSError):  # a full disk, which was reported when it mattered
            stream.close()


def _holder_text() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


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
