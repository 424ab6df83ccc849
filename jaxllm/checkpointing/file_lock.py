"""Exclusive locks on files, which end with the process that holds them."""

import fcntl
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any

LOOK_S = 0.2  # for which `is_claimed` of another process may hold a lock at most


def claim(stream: IO[Any]) -> bool:
    """Locks an open file; returns False if another process has locked it for longer than a look."""
    deadline = monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if monotonic() > deadline:
                return False
        sleep(LOOK_S / 20)


def is_claimed(file: Path) -> bool:
    """Whether a process has locked a file; False if there is none."""
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
