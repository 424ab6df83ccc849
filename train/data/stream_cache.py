"""Cache of a token stream on disk: read if it is what was written, as its digest tells."""

import logging
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np

from .batches import digest
from .windows import TokenStream

log = logging.getLogger("jaxllm")


def read_stream(file: Path) -> TokenStream | None:
    """Returns the stream in a file and those beside it, memory-mapped; None if there is none.

    A damaged one is none, which a line in the log says.
    """
    if not file.exists():
        return None
    try:
        tokens = np.load(file, mmap_mode="r", allow_pickle=False)
        stream = TokenStream(tokens, np.load(_starts(file), allow_pickle=False))
        is_whole = _digest_file(file).read_text() == _digest(stream)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError):
        is_whole = False
    if not is_whole:
        log.warning("%s  damaged, or without its digest: written anew", file)
        return None
    return stream


def write_stream(file: Path, stream: TokenStream) -> None:
    """Writes a stream; the files take their names when they are whole, that of the tokens last."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _replace(_starts(file), lambda path: np.save(path, stream.starts))
    _replace(_digest_file(file), lambda path: path.write_text(_digest(stream)))
    _replace(file, lambda path: np.save(path, stream.tokens))


def _replace(name: Path, write: Callable[[Path], object]) -> None:
    unfinished = name.with_suffix(f".{uuid4().hex}.npy")  # other processes may write it too
    write(unfinished)
    unfinished.replace(name)


def _digest(stream: TokenStream) -> str:
    return f"{digest(stream.tokens)} {digest(stream.starts)}"


def _starts(file: Path) -> Path:
    return file.with_suffix(".starts.npy")


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".digest")
