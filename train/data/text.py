"""Document sources: Python's standard library, and texts in files."""

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxllm.errors import UserError

from .files import BadRows, Row, read_rows
from .files.row import same

# Folders to skip: the library's tests, which are not typical Python, and what is not library code.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def stdlib_documents() -> list[str]:
    """Reads the source of Python's standard library, without tests: a corpus always at hand."""
    return [row.raw for row in stdlib_rows()]


def stdlib_rows() -> Iterator[Row]:
    """Yields the files of `stdlib_documents`, of which one is in memory at a time."""
    for file in _library_files(Path(sysconfig.get_paths()["stdlib"])):
        if (text := _source_text(file)) is not None:
            yield Row(file, "", 1, text, same)


def text_documents(patterns: Iterable[str], *, key: str = "text") -> list[str]:
    """Reads documents: a .txt file is one document, other files have one in each row.

    Args:
        patterns: files, folders or glob patterns.
        key: the key of the text in each row.

    Raises:
        MissingFileError: a pattern matches no file.
        UserError: a file has another suffix or is not UTF-8, or a row is not an object with a text
            under `key`.
    """
    rows = read_rows(patterns, (key,))
    return [text for _, text in BadRows().parsed(rows, lambda record: text_of(record, key))]


def cut_text(text: str, held_out: float) -> tuple[str, str]:
    """Cuts a text near its end, where it is the only one: what follows is held out."""
    cut = round(len(text) * (1 - held_out))
    return text[:cut], text[cut:]


def _library_files(root: Path) -> list[Path]:
    names = (file.relative_to(root) for file in root.rglob("*.py"))
    # Files generated when Python was built depend on the machine.
    kept = [name for name in names if not _NOT_LIBRARY & set(name.parts) and not _is_built(name)]
    return [root / name for name in sorted(kept, key=Path.as_posix)]


def _is_built(name: Path) -> bool:
    return name.parts[0].startswith(("config-", "_sysconfigdata"))


def _source_text(file: Path) -> str | None:
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def text_of(record: object, key: str) -> str:
    """Returns the text that a record has under a key. Raises UserError if it has none."""
    if isinstance(record, dict) and key in record and not isinstance(record[key], str):
        kind = "null" if record[key] is None else f"of type {type(record[key]).__name__}"
        raise UserError(f"{key!r} is {kind}, not a text")
    if not isinstance(record, dict) or key not in record:
        keys = f", which has {', '.join(map(repr, record))}" if isinstance(record, dict) else ""
        raise UserError(f"expected a JSON object with a text under {key!r}{keys}")
    return utf8(record[key])


def utf8(text: str) -> str:
    """Returns the text. Raises UserError for an unpaired surrogate, which JSON can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"it has a lone surrogate, which is not a character: {error}") from None
    return text
