"""Tokenizers: bytes, or a `tokenizer.json` of Hugging Face."""

import json
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import SupportsInt

import tokenizers

from jaxllm.errors import MissingFileError, UserError
from jaxllm.models import TokenModel


class ByteTokenizer:
    """Tokens are the bytes of UTF-8; NUL, which text must not contain, ends a document."""

    vocab_size = 256
    eos_id = 0
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`. Raises UserError if one of them is NUL."""
        if "\0" in text:
            where = f"character {text.index(chr(0))} of the document {text[:60]!r}"
            raise UserError(f"{where} is NUL, which ends a document where tokens are bytes")
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
    same folder, says.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file is not a tokenizer, or nothing names the token.
    """

    def __init__(self, path: str | Path, *, eos: str | None = None):
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise MissingFileError(f"tokenizer {file}: no such file")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more precise
            raise UserError(f"{file} is not a tokenizer.json: {error}") from error
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
            raise UserError(f"{file}: {told}; its special tokens are {special}")
        return eos


Tokenizer = ByteTokenizer | FileTokenizer


def load_tokenizer(path: str | Path | None, *, eos: str | None = None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` or of the folder that has one; None: bytes."""
    return ByteTokenizer() if path is None else FileTokenizer(path, eos=eos)


def check_tokens(tokenizer: Tokenizer, model: TokenModel) -> None:
    """Raises UserError if the model does not know all tokens, or knows them as other ones."""
    for name in ("vocab_size", "source_vocab_size"):
        known = getattr(model.config, name, None)
        if known is not None and tokenizer.vocab_size > known:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model's {name} is {known}"
            )
    own = None if model.origin is None else Path(model.origin.directory) / "tokenizer.json"
    if isinstance(tokenizer, ByteTokenizer) and own is not None and own.is_file():
        raise UserError(f"the model's tokens are those of {own}: give it as data.tokenizer")


def _read_json(file: Path) -> dict:
    """The object in a JSON file, empty if there is no file. Raises UserError for other content."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content
