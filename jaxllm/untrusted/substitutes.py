"""Files in place of ones that were not downloaded: a pointer, a web page, a part of the file."""

import re
from pathlib import Path

from jaxllm.errors import CheckpointError

from .regular_files import check_is_regular

_FIRST_BYTES = 512
_LFS = re.compile(rb"version https://git-lfs[^\n]*\n(?:[^\n]*\n)*?size (\d+)")
_PAGE = re.compile(
    rb"\s*(<!--.*?-->\s*)?<(!doctype html|html|head|\?xml)", re.IGNORECASE | re.DOTALL
)
# The number that an old file of PyTorch may begin with, and what a GGUF file does.
_LIKE_TEXT = re.compile(rb"[IL]\d+|GGUF")
_TEXTS = frozenset((".json", ".txt", ".md", ".yaml", ".yml", ".jinja", ".py", ".csv"))
_SMALL = 10_000  # bytes; browsers show sizes of larger downloads in kB
_AGAIN = "download it again"


def check_is_content(path: Path, *, is_binary: bool = False) -> None:
    """Checks that a file is not only a stand-in for what its name promises.

    Git leaves a pointer in place of a large file, browsers save a page that was shown in place of
    a file, and other programs what a server answered: nothing, or an error. The message has no
    path.

    Args:
        path: the file.
        is_binary: whether its name promises a file of a binary format, which no text is.

    Raises:
        CheckpointError: it is one.
        OSError: it is not a regular file: opening a pipe may never end.
    """
    check_is_regular(path)
    with path.open("rb") as stream:
        start = stream.read(_FIRST_BYTES)
    if pointer := _LFS.match(start):
        size = f"{int(pointer[1][:18]) / 1000:,.0f} kB"
        raise CheckpointError(
            f"a Git LFS pointer to {size}, not the file itself: run `git lfs pull`, or {_AGAIN}"
        )
    if _PAGE.match(start):
        raise CheckpointError(
            f"a web page, not the file itself: {_AGAIN}, from the address that serves the file "
            "(on the Hugging Face hub /resolve/ in place of /blob/)"
        )
    if is_binary and not start:
        raise CheckpointError(f"an empty file: {_AGAIN}")
    if not is_binary or _LIKE_TEXT.match(start) or (text := _printable(start)) is None:
        return
    if path.suffix in _TEXTS:
        raise CheckpointError("a text, which holds no tensors: give the weights or their folder")
    raise CheckpointError(f"the text {text.strip()[:60]!r}, not the file itself: {_AGAIN}")


def _printable(start: bytes) -> str | None:
    """Returns the text that a file begins with; None if it has other bytes."""
    try:
        text = start.decode()
    except UnicodeDecodeError:
        return None
    return text if all(letter.isprintable() or letter.isspace() for letter in text) else None


def cut_short(size: int, whole: int | None = None) -> CheckpointError:
    """Returns the error for a file of which only the first `size` bytes are there, of `whole`."""
    unit, name = (1, "bytes") if (whole or size) < _SMALL else (1000, "kB")
    here = f"{size / unit:,.0f}"
    there = f"only its first {here}" if whole is None else f"{here} of {whole / unit:,.0f}"
    return CheckpointError(f"cut short: {there} {name} are there; {_AGAIN}")
