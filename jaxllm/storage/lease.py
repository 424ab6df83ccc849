"""A lease: the lock of a folder on an object store, where no lock ends with its process.

The holder rewrites an object every few seconds. Who finds one waits whether it changes: clocks of
different machines are not compared.
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any

from jaxllm.errors import UserError

from .download import first_line

BEAT_S = 10.0  # between two signs of life of the holder
LEAST_WAIT_S = 3 * BEAT_S  # without one, after which the holder is taken for dead
SETTLE_S = 1.0  # in which another one that takes the lease at the same time is seen


class LeaseHeldError(UserError):
    """Another process holds the lease; the message is what it says about itself."""


@contextmanager
def leased(file: Any, holder: str) -> Iterator[None]:
    """Holds a lease while the context lasts.

    Args:
        file: the object, an `epath.Path`.
        holder: one line that says who holds it.

    Raises:
        LeaseHeldError: another process holds it, and is alive.
        UserError: the object cannot be written.
    """
    _wait_for_death(file)
    own = secrets.token_hex(8)
    try:
        file.write_text(f"{holder}\n{own}\n0")
    except Exception as error:
        raise UserError(f"{file.parent} cannot be written: {first_line(error)}") from error
    sleep(SETTLE_S)
    if (found := _read(file)).split("\n")[1:2] != [own]:
        raise LeaseHeldError(found.partition("\n")[0] or "starting")
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(BEAT_S):
            number += 1
            with suppress(Exception):  # perhaps the next one succeeds
                file.write_text(f"{holder}\n{own}\n{number}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            file.unlink(missing_ok=True)


def is_alive(file: Any) -> bool:
    """Whether a process holds the lease; waits for a sign of life of the one that took it."""
    before, deadline = _read(file), monotonic() + LEAST_WAIT_S
    while before and monotonic() < deadline:
        sleep(BEAT_S / 20)
        if (now := _read(file)) != before:
            return bool(now)
    return False


def _wait_for_death(file: Any) -> None:
    holder = _read(file).partition("\n")[0]
    if holder and is_alive(file):
        raise LeaseHeldError(holder)


def _read(file: Any) -> str:
    """Returns the content; "" if there is none."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
    except Exception as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
