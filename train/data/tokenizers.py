"""Tokenizers: UTF-8 bytes, or a Hugging Face `tokenizer.json`."""

import json
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import SupportsInt

import tokenizers

from jaxllm.errors import MissingFileError, UserError
from jaxllm.models import TokenModel


class ByteTokenizer:
    """Uses UTF-8 bytes as tokens. NUL is the end-of-sequence token and must not occur in text."""

    vocab_size = 256
    eos_id = 0
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        """Returns the UTF-8 bytes of `text`. Raises UserError if it has NUL or a lone surrogate."""
        if "\0" in text:
            where = f"character {text.index(chr(0))} of the document {text[:60]!r}"
            raise UserError(
                f"{where} is NUL, which is the end-of-sequence token when tokens are bytes; "
                "remove it or set a tokenizer"
            )
        return list(_utf8(text))

    def encode_prompt(self, text: str) -> list[int]:
        """Same as `encode`: there is no beginning-of-sequence token."""
        return self.encode(text)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Decodes `ids` to text, with U+FFFD in place of invalid UTF-8."""
        return bytes(map(int, ids)).decode(errors="replace")


class FileTokenizer:
    """A Hugging Face tokenizer, read from `tokenizer.json`.

    Args:
        path: the file, or the folder that contains it.
        eos: the text of the end-of-sequence token; by default the one that
            `tokenizer_config.json` or `generation_config.json` in the same folder names.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not a tokenizer or has no tokens, or the end-of-sequence token is
            not given or unknown.
    """

    def __init__(self, path: str | Path, *, eos: str | None = None):
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise MissingFileError(f"the tokenizer file {file} does not exist")
        content = file.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # tokenizers raises nothing more precise
            raise UserError(f"{file} is not a tokenizer.json: {error}") from error
        # "<|endoftext|>" inside a text is thirteen characters, not the end-of-sequence token.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # The highest id, not the number of entries, since some vocabularies have gaps.
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if not self.vocab_size:
            raise UserError(f"{file}: its vocabulary is empty; a tokenizer needs tokens")
        self.eos_id = self._find_eos(file, eos)
        self.fingerprint = f"{blake2b(content).hexdigest()} {self.eos_id}"

    def encode(self, text: str) -> list[int]:
        """Tokenizes `text` without special tokens, truncation or padding.

        Raises UserError if it has a lone surrogate.
        """
        return self._encode(text, special=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Tokenizes a prompt, with the special tokens the tokenizer adds but no end-of-sequence."""
        ids = self._encode(text, special=True)
        return ids[:-1] if ids[-1:] == [self.eos_id] and len(ids) > 1 else ids

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Decodes `ids` to text, including special tokens."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        _utf8(text)  # the tokenizer's own error for a surrogate says nothing about the text
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def _find_eos(self, file: Path, name: str | None) -> int:
        """Returns the id of the end-of-sequence token `name`, or of the one that a file names."""
        place = file.with_name("tokenizer_config.json")
        given = name or _read_json(place).get("eos_token")
        if given is None:
            return self._find_eos_id(file)
        text = given.get("content") if isinstance(given, dict) else given  # or an AddedToken
        if not isinstance(text, str):
            raise UserError(
                f"{place}: eos_token is {given!r}; it must be a text, or an object with a text as "
                "its content"
            )
        eos = self._tokenizer.token_to_id(text)
        if eos is None:
            raise UserError(f"{file}: it has no token {text!r} to end a sequence; {self._special}")
        return eos

    def _find_eos_id(self, file: Path) -> int:
        place = file.with_name("generation_config.json")
        given = _read_json(place).get("eos_token_id")
        if given is None:
            raise UserError(
                f"{file}: no eos_token is named in its folder; set eos_token in "
                f"tokenizer_config.json there, or, for training, set data.eos; {self._special}"
            )
        # A list has the end-of-sequence token, then end-of-turn tokens.
        eos = given[0] if isinstance(given, list) and given else given
        if type(eos) is not int or not 0 <= eos < self.vocab_size:
            raise UserError(
                f"{place}: eos_token_id is {given!r}; it must be a token id from 0 to "
                f"{self.vocab_size - 1}, or a list of such ids"
            )
        return eos

    @property
    def _special(self) -> str:
        added = self._tokenizer.get_added_tokens_decoder().values()
        return f"its special tokens are {[token.content for token in added if token.special]}"


Tokenizer = ByteTokenizer | FileTokenizer


def load_tokenizer(path: str | Path | None, *, eos: str | None = None) -> Tokenizer:
    """Loads a `tokenizer.json`, or the one in a folder; None gives the byte tokenizer."""
    return ByteTokenizer() if path is None else FileTokenizer(path, eos=eos)


def check_tokens(tokenizer: Tokenizer, model: TokenModel) -> None:
    """Checks that a tokenizer fits a model.

    Raises:
        UserError: the tokenizer has more tokens than the model, or tokens are bytes although the
            model came with a tokenizer of its own.
    """
    for name in ("vocab_size", "source_vocab_size"):
        known = getattr(model.config, name, None)
        if known is not None and tokenizer.vocab_size > known:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens; the model's {name} is {known}"
            )
    own = None if model.origin is None else Path(model.origin.directory) / "tokenizer.json"
    if isinstance(tokenizer, ByteTokenizer) and own is not None and own.is_file():
        raise UserError(f"the model was trained with the tokenizer {own}; set it as data.tokenizer")


def _utf8(text: str) -> bytes:
    """Returns the UTF-8 bytes of a text. Raises UserError if it has a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start]
        raise UserError(
            f"character {error.start} of the document {text[:60]!r} is {found!r}, a lone "
            "surrogate, which is not a character; remove it"
        ) from None


def _read_json(file: Path) -> dict:
    """Returns the object in a JSON file, or {} without one. Raises UserError for other content."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content
