"""Base class of tokenizers, with one way to encode each role of a text; UTF-8 bytes as tokens."""

import abc
from collections.abc import Iterable, Sequence
from typing import SupportsInt

import numpy as np

from jaxllm.config import Config, EncoderDecoderConfig
from jaxllm.errors import UserError


class Tokenizer(abc.ABC):
    """Encodes texts as token ids.

    Special tokens are added as the tokenizer's own post-processor says, so that ids equal those of
    transformers' `AutoTokenizer`. Inside a text, `<|im_end|>` is one token if the text is trusted,
    such as a prompt that a chat template made, and ordinary characters if it is not.

    Attributes:
        vocab_size: one more than the highest id.
        bos_id: the beginning-of-sequence token; None if nothing names one.
        special_ids: the special tokens, but for the one of unknown text.
    """

    vocab_size: int
    bos_id: int | None = None
    special_ids: Sequence[int] = ()

    @property
    @abc.abstractmethod
    def eos_id(self) -> int | None:
        """The end-of-sequence token; None if nothing names one.

        Raises UserError if a file names one that is not in the vocabulary.
        """

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A text that is the same for tokenizers that encode alike."""

    @abc.abstractmethod
    def _ids(self, text: str, *, with_special: bool, trusted: bool) -> list[int]:
        """Encodes a valid text.

        Args:
            text: has no lone surrogate.
            with_special: whether to add the tokens of the post-processor.
            trusted: whether special tokens in the text are one token each.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Decodes `ids` to text, including special tokens."""

    def encode(self, text: str) -> list[int]:
        """Encodes the characters of a text, without any special token.

        Raises UserError if it has a lone surrogate.
        """
        utf8(text)
        return self._ids(text, with_special=False, trusted=False)

    def encode_prompt(self, text: str, *, trusted: bool = True) -> list[int]:
        """Encodes a text for a decoder to continue."""
        utf8(text)
        return self._ids(text, with_special=True, trusted=trusted)

    def encode_chat(self, text: str) -> list[int]:
        """Encodes what a chat template made: it has every special token that belongs there."""
        utf8(text)
        return self._ids(text, with_special=False, trusted=True)

    def encode_chat_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """Returns the ids of `encode_chat`, and the characters of each, int (T, 2), half-open.

        Raises UserError if the tokenizer does not tell.
        """
        raise UserError(
            "this tokenizer, written in Python, does not tell which characters a token stands for; "
            "save a tokenizer.json"
        )

    def encode_source(self, text: str, *, trusted: bool = True) -> list[int]:
        """Encodes a text for an encoder to read, with the end token that it was trained with."""
        return self.encode_prompt(text, trusted=trusted)

    def encode_document(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Encodes a text to train on: a document, or the target of a pair. It ends with `eos_id`.

        Args:
            text: never trusted.
            bos: whether it begins with `bos_id`, or with no special token at all; by default it
                begins as the post-processor says.

        Raises:
            UserError: the text has a lone surrogate, or the token to add is not known.
        """
        utf8(text)
        ids = self._ids(text, with_special=bos is not False, trusted=False)
        if self.eos_id is None or (bos and self.bos_id is None):
            missing = "end" if self.eos_id is None else "beginning"
            raise UserError(f"the tokenizer names no {missing}-of-sequence token")
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

    def encode_documents(self, texts: Sequence[str], *, bos: bool | None = None) -> list[list[int]]:
        """Encodes several documents, each as `encode_document` does, perhaps in parallel."""
        return [self.encode_document(text, bos=bos) for text in texts]

    def encode_input(self, text: str, config: Config, *, trusted: bool = True) -> list[int]:
        """Encodes what a model of this config reads: a prompt, or the source of an encoder."""
        is_source = isinstance(config, EncoderDecoderConfig)
        encode = self.encode_source if is_source else self.encode_prompt
        return encode(text, trusted=trusted)


class ByteTokenizer(Tokenizer):
    """Uses UTF-8 bytes as tokens. NUL is the end-of-sequence token and must not occur in text."""

    vocab_size = 256
    eos_id = 0
    fingerprint = "bytes"

    def _ids(self, text: str, *, with_special: bool, trusted: bool) -> list[int]:
        if "\0" in text:
            where = f"character {text.index(chr(0))} of the document {text[:60]!r}"
            raise UserError(
                f"{where} is NUL, which is the end-of-sequence token when tokens are bytes; "
                "remove it or set a tokenizer"
            )
        return list(text.encode())

    def encode_chat(self, text: str) -> list[int]:
        """Encodes what a chat template made, which may end turns with NUL."""
        return list(utf8(text))

    def encode_chat_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """Encodes a chat; each byte stands for the character that it is part of."""
        ids = self.encode_chat(text)
        sizes = [len(character.encode()) for character in text]
        first = np.repeat(np.arange(len(text)), sizes)
        return ids, np.stack([first, first + 1], axis=1)

    def encode_source(self, text: str, *, trusted: bool = True) -> list[int]:
        """Encodes a text for an encoder to read; it ends with NUL."""
        return [*self.encode_prompt(text, trusted=trusted), self.eos_id]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Decodes `ids` to text, with U+FFFD in place of invalid UTF-8."""
        return bytes(map(int, ids)).decode(errors="replace")


def utf8(text: str) -> bytes:
    """Returns the UTF-8 bytes of a text. Raises UserError if it has a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start]
        raise UserError(
            f"character {error.start} of the document {text[:60]!r} is {found!r}, a lone "
            "surrogate, which is not a character; remove it"
        ) from None
