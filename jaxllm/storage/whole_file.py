"""Small files that are written whole or not at all: a full disk leaves the file that was there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file, which takes its name when it is complete; text becomes UTF-8.

    Raises:
        OSError: it cannot be written; names the file, the bytes needed and those that are free.
    """
    whole, data = Path(path), content.encode() if isinstance(content, str) else content
    unfinished = whole.with_name(f".unfinished.{whole.name}")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(whole)
    except OSError as error:
        free = _free(whole.parent)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        reason = f"{error.strerror} ({len(data):,} bytes to write{free})"
        raise OSError(error.errno, reason, str(whole)) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context of writing to an open file, whose errors do not name it by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f", {shutil.disk_usage(folder).free:,} are free"
    return ""
