"""Exclusive locks on files, which end with the process that holds them."""

import fcntl
from typing import IO, Any


def claim(stream: IO[Any]) -> bool:
    """Locks an open file; returns False if another process has locked it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
