"""Text as documents and as token ids: the tokenizers, where text comes from, what is held out."""

import glob
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import SupportsInt

import tokenizers

from jaxllm.models import TokenModel

from .held_out import held_out_of

# Tests of the library are not how Python is written; the rest is not the library.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class ByteTokenizer:
    """Tokens are the bytes of UTF-8; NUL, which text must not contain, ends a document."""

    vocab_size = 256
    eos_id = 0
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`. Raises ValueError if one of them is NUL."""
        if "\0" in text:
            where = f"character {text.index(chr(0))} of the document {text[:60]!r}"
            raise ValueError(f"{where} is NUL, which ends a document where tokens are bytes")
        return list(text.encode())

    def encode_prompt(self, text: str) -> list[int]:
        """The same as `encode`: a text of bytes has no token to begin with."""
        return self.encode(text)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`, with U+FFFD wherever they are not UTF-8."""
        return bytes(map(int, ids)).decode(errors="replace")


class FileTokenizer:
    """The tokenizer of a `tokenizer.json`; `eos` spells its end-of-text token.

    Without `eos`, that token is what `tokenizer_config.json` or `generation_config.json`, in the
    same folder, says. Raises FileNotFoundError, or ValueError if the file is no tokenizer or the
    token cannot be told.
    """

    def __init__(self, path: str | Path, *, eos: str | None = None):
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"tokenizer {file}: no such file")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more precise
            raise ValueError(f"{file} is not a tokenizer.json: {error}") from error
        # "<|endoftext|>" within a text is thirteen characters, not the end of it.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Not the number of entries: some vocabularies have gaps.
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        self.eos_id = self._find_eos(file, eos)
        self.fingerprint = f"{blake2b(file.read_bytes()).hexdigest()} {self.eos_id}"

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, none of them special, nothing added, nothing cut off."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """The tokens of a text to be continued: begun as the tokenizer begins texts, not ended."""
        ids = self._tokenizer.encode(text, add_special_tokens=True).ids
        return ids[:-1] if ids[-1:] == [self.eos_id] and len(ids) > 1 else ids

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`, special tokens spelled out."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def _find_eos(self, file: Path, name: str | None) -> int:
        found = name or _read_json(file.with_name("tokenizer_config.json")).get("eos_token")
        if found is None:
            found = _read_json(file.with_name("generation_config.json")).get("eos_token_id")
        if isinstance(found, dict):  # an AddedToken written out
            found = found["content"]
        if isinstance(found, list):  # the end of a text, then the ends of a turn
            found = found[0]
        eos = self._tokenizer.token_to_id(found) if isinstance(found, str) else found
        if eos is None:
            added = self._tokenizer.get_added_tokens_decoder().values()
            special = [token.content for token in added if token.special]
            told = (
                "its folder names no eos_token" if found is None else f"it has no token {found!r}"
            )
            raise ValueError(f"{file}: {told}; its special tokens are {special}")
        return eos


Tokenizer = ByteTokenizer | FileTokenizer


def load_tokenizer(path: str | Path | None, *, eos: str | None = None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` or of the folder that has one; None: bytes."""
    return ByteTokenizer() if path is None else FileTokenizer(path, eos=eos)


def check_tokens(tokenizer: Tokenizer, model: TokenModel) -> None:
    """Raises ValueError if the model does not know all tokens, or knows them as other ones."""
    for name in ("vocab_size", "source_vocab_size"):
        known = getattr(model.config, name, None)
        if known is not None and tokenizer.vocab_size > known:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model's {name} is {known}"
            )
    own = None if model.origin is None else Path(model.origin.directory) / "tokenizer.json"
    if isinstance(tokenizer, ByteTokenizer) and own is not None and own.is_file():
        raise ValueError(f"the model's tokens are those of {own}: give it as data.tokenizer")


def stdlib_documents() -> list[str]:
    """The source of Python's standard library without its tests: a corpus that is always there."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [_source_text(file) for file in _library_files(root)]
    return [text for text in texts if text is not None]


def text_documents(patterns: Iterable[str], *, key: str = "text") -> list[str]:
    """Documents of files or glob patterns: a .txt is one, each line of a .jsonl is one.

    Raises FileNotFoundError for a pattern that matches nothing, ValueError for a file of another
    kind, one that is not UTF-8, or a line that is not a JSON object with a text under `key`.
    """
    return [text for file in _files(patterns) for text in _file_documents(file, key)]


def text_pairs(patterns: Iterable[str], keys: tuple[str, str]) -> list[tuple[str, str]]:
    """Each line's two texts, of .jsonl files or glob patterns. Raises as `text_documents` does."""
    pairs = []
    for file in _files(patterns):
        if file.suffix != ".jsonl":
            raise ValueError(f"{file}: pairs are read from .jsonl files, not {file.suffix!r}")
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
    is_held = held_out_of([text.encode() for text in documents], held_out)
    train = [text for text, held in zip(documents, is_held, strict=True) if not held]
    return train, [text for text, held in zip(documents, is_held, strict=True) if held]


def _read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


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
        raise FileNotFoundError(f"text {pattern!r} matches no file")
    return files


def _file_documents(file: Path, key: str) -> Iterator[str]:
    if file.suffix == ".jsonl":
        yield from (text for (text,) in _jsonl_texts(file, (key,)))
    elif file.suffix == ".txt":
        try:
            yield file.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from error
    else:
        raise ValueError(f"{file}: text is read from .txt and .jsonl files, not {file.suffix!r}")


def _jsonl_texts(file: Path, keys: tuple[str, ...]) -> Iterator[list[str]]:
    """Each line's texts under the keys."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line.decode())
                    yield [_text_of(record, key) for key in keys]
                except ValueError as error:
                    raise ValueError(
                        f"{file}, line {number}: {error}; found {line[:80]!r}"
                    ) from error


def _text_of(record: object, key: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        raise ValueError(f"expected a JSON object with a text under {key!r}")
    record[key].encode()  # JSON can spell half a surrogate pair; UTF-8, rightly, cannot
    return record[key]
