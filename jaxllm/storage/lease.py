"""A lease: the lock of a folder on an object store, where no lock ends with its process.

The holder rewrites an object every few seconds. Another process watches the object for a while: if
it does not change, its holder is taken for dead. (A timestamp would not do, since the clocks of two
machines may differ.) A holder that was only suspended, and lost its lease meanwhile, finds out at
its next beat.
"""

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any

from jaxllm.errors import UserError, first_line

from .paths import file_system

BEAT_S = 10.0  # between two signs of life of the holder
LEAST_WAIT_S = 3 * BEAT_S  # without one, after which the holder is taken for dead
SETTLE_S = 1.0  # in which another one that takes the lease at the same time is seen


class LeaseHeldError(UserError):
    """Another process holds the lease; the message is what it says about itself."""


@contextmanager
def leased(file: Any, holder: str) -> Iterator[Callable[[], None]]:
    """Holds a lease while the context lasts.

    Yields:
        A function that raises UserError once the last beat has found the lease lost.

    Args:
        file: the object, an `epath.Path`.
        holder: one line that says who holds it.

    Raises:
        LeaseHeldError: another process holds it, and is alive.
        UserError: the object cannot be written.
    """
    _remove_dead(file)
    own = f"{holder}\n{secrets.token_hex(8)}\n"
    _create(file, f"{own}0")
    sleep(SETTLE_S)
    if not (found := _read(file)).startswith(own):
        raise LeaseHeldError(found.partition("\n")[0] or "starting")
    ended, lost = threading.Event(), threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(BEAT_S) and not lost.is_set():
            number += 1
            with suppress(Exception):  # perhaps the next one succeeds
                if _read(file).startswith(own):
                    file.write_text(f"{own}{number}")
                else:
                    lost.set()

    def check() -> None:
        if lost.is_set():
            raise UserError(
                f"{file} is not this process's any more: it was removed, or another run took it "
                f"after {LEAST_WAIT_S:.0f} s without a sign of life of this one"
            )

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            if _read(file).startswith(own):
                file.unlink(missing_ok=True)


def is_alive(file: Any) -> bool:
    """Whether a process holds the lease; waits for a sign of life of the one that took it."""
    before, deadline = _read(file), monotonic() + LEAST_WAIT_S
    while before and monotonic() < deadline:
        sleep(BEAT_S / 20)
        if (now := _read(file)) != before:
            return bool(now)
    return False


def _remove_dead(file: Any) -> None:
    """Removes the object of a dead holder; raises LeaseHeldError if the holder is alive."""
    found = _read(file)
    if not found:
        return
    if is_alive(file):
        raise LeaseHeldError(found.partition("\n")[0])
    with suppress(FileNotFoundError):
        if _read(file) == found:  # otherwise another process was faster
            file.unlink()


def _create(file: Any, text: str) -> None:
    """Writes an object where none is; of several writers one succeeds."""
    try:
        address = os.fspath(file)
        file_system(address).pipe_file(address, text.encode(), mode="create")
    except FileExistsError:
        pass  # which may be its own, where a request was repeated
    except Exception as error:
        raise UserError(f"{file.parent} cannot be written: {first_line(error)}") from error


def _read(file: Any) -> str:
    """Returns the content; "" if there is none."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
    except Exception as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
