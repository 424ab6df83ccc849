"""Exclusive locks on files, which end with the process that holds them."""

import fcntl
from pathlib import Path
from typing import IO, Any


def claim(stream: IO[Any]) -> bool:
    """Locks an open file; returns False if another process has locked it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
