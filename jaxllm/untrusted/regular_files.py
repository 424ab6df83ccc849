"""Regular files: reading a pipe may never end, and a device such as /dev/zero has no end."""

import errno
import os
import stat
from pathlib import Path


def check_is_regular(path: Path) -> None:
    """Raises OSError if nothing is at `path`, or a pipe, a device or a socket."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        reason = "this is a pipe, a device or a socket, not a regular file"
        raise OSError(errno.EINVAL, reason, os.fspath(path))


def is_named(path: Path) -> bool:
    """Whether a folder has this name, if only for a link that leads nowhere: reading it fails."""
    return os.path.lexists(path)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Reads a regular file.

    Args:
        path: the file.
        most: the most bytes that it may have.

    Raises:
        OSError: the file is larger, is not a regular file, or cannot be read.
    """
    check_is_regular(path)
    if most is not None and (size := path.stat().st_size) > most:
        reason = f"this file has {size} bytes; at most {most} are read"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return path.read_bytes()
