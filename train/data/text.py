"""Document sources: Python's standard library, .txt and .jsonl files; and the held-out split."""

import glob
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxllm.errors import MissingFileError, UserError
from jaxllm.hub import local_path
from jaxllm.storage.download import find_matching
from jaxllm.storage.paths import is_remote

from .held_out import split_held_out

# Folders to skip: the library's tests, which are not typical Python, and what is not library code.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def stdlib_documents() -> list[str]:
    """Reads the source of Python's standard library, without tests: a corpus always at hand."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [_source_text(file) for file in _library_files(root)]
    return [text for text in texts if text is not None]


def text_documents(patterns: Iterable[str], *, key: str = "text") -> list[str]:
    """Reads documents: a .txt file is one document, a .jsonl file has one per line.

    Args:
        patterns: files or glob patterns.
        key: the key of the text in each line of a .jsonl file.

    Raises:
        MissingFileError: a pattern matches no file.
        UserError: a file has another suffix or is not UTF-8, or a line is not a JSON object with
            a text under `key`.
    """
    return [text for file in _files(patterns) for text in _file_documents(file, key)]


def text_pairs(patterns: Iterable[str], keys: tuple[str, str]) -> list[tuple[str, str]]:
    """Reads a (source, target) pair from each line of .jsonl files.

    Args:
        patterns: files or glob patterns.
        keys: the keys of the source and of the target.

    Raises:
        MissingFileError, UserError: as for `text_documents`.
    """
    pairs = []
    for file in _files(patterns):
        if file.suffix != ".jsonl":
            raise UserError(f"{file}: pairs are read from .jsonl files, not {file.suffix!r}")
        pairs += [(source, target) for source, target in _jsonl_texts(file, keys)]
    return pairs


def find_files(patterns: Iterable[str]) -> dict[str, int]:
    """Returns the files that patterns match and their sizes in bytes, and downloads none.

    Raises:
        MissingFileError: a pattern matches no file.
    """
    return {name: size for pattern in patterns for name, size in _matches(pattern).items()}


def split_documents(documents: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """Splits documents into training and held-out ones, keeping their order.

    A document is held out if the hash of its text, as a number in [0, 1), is below `held_out`:
    adding documents does not move others, and copies of a text stay on one side. With two or more
    different documents each side gets at least one; a single text is cut near its end.
    """
    if held_out and len(set(documents)) == 1:
        cut = round(len(documents[0]) * (1 - held_out))
        return [documents[0][:cut]], [documents[0][cut:]]
    is_held = split_held_out([text.encode() for text in documents], held_out)
    train = [text for text, held in zip(documents, is_held, strict=True) if not held]
    return train, [text for text, held in zip(documents, is_held, strict=True) if held]


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


def _files(patterns: Iterable[str]) -> list[Path]:
    return [local_path(name) for name in find_files(patterns)]


def _matches(pattern: str) -> dict[str, int]:
    if is_remote(pattern):
        found = find_matching(pattern)
    else:  # the name of a file may contain glob characters
        is_file = Path(pattern).is_file()
        names = [pattern] if is_file else sorted(glob.glob(pattern, recursive=True))
        files = [file for file in map(Path, names) if file.is_file()]
        found = {str(file): file.stat().st_size for file in files}
    if not found:
        raise MissingFileError(f"no file matches {pattern!r}")
    return found


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
    """Yields the texts under `keys` of each line that is not blank."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line.decode())
                    yield [_text_of(record, key) for key in keys]
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{file}, line {number}: {error}; found {line[:80]!r}"
                    ) from error


def _text_of(record: object, key: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        raise UserError(f"expected a JSON object with a text under {key!r}")
    record[key].encode()  # raises for an unpaired surrogate, which JSON can hold and UTF-8 cannot
    return record[key]
