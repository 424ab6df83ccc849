"""Text as documents: where it comes from, and what part of it is held out."""

import glob
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxllm.errors import MissingFileError, UserError

from .held_out import split_held_out

# Tests of the library are not how Python is written; the rest is not the library.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def stdlib_documents() -> list[str]:
    """The source of Python's standard library without its tests: a corpus that is always there."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [_source_text(file) for file in _library_files(root)]
    return [text for text in texts if text is not None]


def text_documents(patterns: Iterable[str], *, key: str = "text") -> list[str]:
    """Documents of files or glob patterns: a .txt is one, each line of a .jsonl is one.

    Raises MissingFileError for a pattern that matches nothing, UserError for a file of another
    kind, one that is not UTF-8, or a line that is not a JSON object with a text under `key`.
    """
    return [text for file in _files(patterns) for text in _file_documents(file, key)]


def text_pairs(patterns: Iterable[str], keys: tuple[str, str]) -> list[tuple[str, str]]:
    """Each line's two texts, of .jsonl files or glob patterns. Raises as `text_documents` does."""
    pairs = []
    for file in _files(patterns):
        if file.suffix != ".jsonl":
            raise UserError(f"{file}: pairs are read from .jsonl files, not {file.suffix!r}")
        pairs += [(source, target) for source, target in _jsonl_texts(file, keys)]
    return pairs


def split_documents(documents: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """Training documents and held-out ones, each in the order given.

    A document is held out if the hash of its text, as a number in [0, 1), is below `held_out`:
    what becomes of it depends on no other document, and copies of a text stay together. Of two
    or more different documents at least one goes to each side; a single text is cut near its end.
    """
    if held_out and len(set(documents)) == 1:
        cut = round(len(documents[0]) * (1 - held_out))
        return [documents[0][:cut]], [documents[0][cut:]]
    is_held = split_held_out([text.encode() for text in documents], held_out)
    train = [text for text, held in zip(documents, is_held, strict=True) if not held]
    return train, [text for text, held in zip(documents, is_held, strict=True) if held]


def _library_files(root: Path) -> list[Path]:
    names = (file.relative_to(root) for file in root.rglob("*.py"))
    # What the build of Python wrote tells of one machine.
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


def _files(patterns: Iterable[str]) -> list[Path]:
    return list(dict.fromkeys(file for pattern in patterns for file in _matches(pattern)))


def _matches(pattern: str) -> list[Path]:
    if Path(pattern).is_file():  # whatever characters its name has
        return [Path(pattern)]
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise MissingFileError(f"text {pattern!r} matches no file")
    return files


def _file_documents(file: Path, key: str) -> Iterator[str]:
    if file.suffix == ".jsonl":
        yield from (text for (text,) in _jsonl_texts(file, (key,)))
    elif file.suffix == ".txt":
        try:
            yield file.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8: {error}") from error
    else:
        raise UserError(f"{file}: text is read from .txt and .jsonl files, not {file.suffix!r}")


def _jsonl_texts(file: Path, keys: tuple[str, ...]) -> Iterator[list[str]]:
    """Each line's texts under the keys."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line.decode())
                    yield [_text_of(record, key) for key in keys]
                except ValueError as error:
                    raise UserError(
                        f"{file}, line {number}: {error}; found {line[:80]!r}"
                    ) from error


def _text_of(record: object, key: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        raise UserError(f"expected a JSON object with a text under {key!r}")
    record[key].encode()  # JSON can spell half a surrogate pair; UTF-8, rightly, cannot
    return record[key]
