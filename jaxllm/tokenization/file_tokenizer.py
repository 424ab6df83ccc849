"""Hugging Face tokenizers: a `tokenizer.json`, with the files beside it that complete it."""

import functools
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import SupportsInt

import numpy as np
import tokenizers
from tokenizers import AddedToken, Encoding

from jaxllm.errors import MissingFileError, UserError
from jaxllm.untrusted.regular_files import is_named
from jaxllm.untrusted.tokenizer_files import decode, encode, encode_batch, read_tokenizer

from .special_tokens import find_eos_ids, is_unicode, named_texts
from .tokenizer import Tokenizer, utf8

FILE = "tokenizer.json"
VERSION = "2"  # of the way documents are encoded, for fingerprints


class FileTokenizer(Tokenizer):
    """A tokenizer of the package `tokenizers`: from `tokenizer.json`, or converted to that form.

    Args:
        backend: the tokenizer.
        place: the file or folder that it was read from, for messages and for the files beside it.
        eos: the text of the end-of-sequence token; by default the one that the folder names in
            `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` or
            `config.json`, in this order.

    Raises:
        UserError: the tokenizer has no tokens, or a special token is not in its vocabulary.
    """

    def __init__(self, backend: tokenizers.Tokenizer, place: Path, *, eos: str | None = None):
        self._backend, self._place = backend, place
        backend.no_truncation()
        backend.no_padding()
        folder = place if place.is_dir() else place.parent
        texts = named_texts(folder)
        known = [text for text in texts.values() if backend.token_to_id(text) is not None]
        backend.add_special_tokens([AddedToken(text, special=True) for text in known])
        # The highest id, not the number of entries, since some vocabularies have gaps.
        self.vocab_size = 1 + max(backend.get_vocab().values(), default=-1)
        if not self.vocab_size:
            raise UserError(f"{place}: its vocabulary is empty; a tokenizer needs tokens")
        added = backend.get_added_tokens_decoder()
        # The unknown token is not among them: it stands for ordinary text.
        unknown = texts.get("unk", getattr(backend.model, "unk_token", None))
        self._special = {
            token: each.content
            for token, each in added.items()
            if each.special and each.content != unknown
        }
        self.special_ids = [*self._special]
        self.bos_id = backend.token_to_id(texts["bos"]) if "bos" in texts else None
        self._folder, self._eos = folder, eos or texts.get("eos")

    @classmethod
    def read(cls, path: str | Path, *, eos: str | None = None) -> "FileTokenizer":
        """Reads a `tokenizer.json`, or the one in a folder.

        Raises:
            MissingFileError: the file does not exist.
            UserError: the file is not a tokenizer, or multiplies texts; or as for the class.
        """
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        if not is_named(file):
            raise MissingFileError(f"the tokenizer file {file} does not exist")
        return cls(read_tokenizer(file), file, eos=eos)

    def encode_document(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Encodes a text to train on, as the base class says."""
        self._check_ends(bos)
        return super().encode_document(text, bos=bos)

    def encode_documents(self, texts: Sequence[str], *, bos: bool | None = None) -> list[list[int]]:
        """Encodes several documents at once, on all cores."""
        self._check_ends(bos)
        before, after = self._around if bos is not False else ([], [])
        if bos and self.bos_id is not None and before[:1] != [self.bos_id]:
            before = [self.bos_id, *before]
        if self.eos_id is not None and after[-1:] != [self.eos_id]:
            after = [*after, self.eos_id]
        for text in texts:
            utf8(text)
        self._backend.encode_special_tokens = True
        special = np.array([*self._special])
        found = []
        for text, ids in zip(texts, encode_batch(self._backend, texts, self._place), strict=True):
            if np.isin(ids, special).any():  # in the text, which is not trusted
                found.append(self.encode_document(text, bos=bos))
            else:
                found.append([*before, *ids, *after])
        return found

    def encode_chat_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """Encodes what a chat template made, with the characters of each token."""
        utf8(text)
        self._backend.encode_special_tokens = False
        encoding = encode(self._backend, text, self._place, special=False)
        return encoding.ids, np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def _check_ends(self, bos: bool | None) -> None:
        """Raises UserError if a token that documents begin or end with is not known."""
        if self.eos_id is None:
            raise UserError(
                f"{self._place}: no eos_token is named in its folder; set eos_token in "
                f"tokenizer_config.json there, or, for training, set data.eos; {self._listed}"
            )
        if bos and self.bos_id is None:
            raise UserError(
                f"{self._place}: data.bos is true, but no bos_token is named in its folder; set "
                f"bos_token in tokenizer_config.json there; {self._listed}"
            )

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that the post-processor adds before and after a text."""
        text = "a"
        inside = self._ids(text, with_special=False, trusted=False)
        whole = self._ids(text, with_special=True, trusted=False)
        first = next(at for at in range(len(whole)) if whole[at : at + len(inside)] == inside)
        return whole[:first], whole[first + len(inside) :]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Decodes `ids` to text, including special tokens."""
        return decode(self._backend, [int(token) for token in ids], self._place)

    def _ids(self, text: str, *, with_special: bool, trusted: bool) -> list[int]:
        self._backend.encode_special_tokens = not trusted
        encoding = encode(self._backend, text, self._place, special=with_special)
        if not trusted and self._special_inside(encoding):
            encoding = self._without_special(text)
            encoding = self._backend.post_process(encoding, None, with_special)
        return encoding.ids

    def _special_inside(self, encoding: Encoding) -> list[int]:
        """Returns the special tokens that come from the text, not from the post-processor."""
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [token for token, is_added in pairs if not is_added and token in self._special]

    def _without_special(self, text: str) -> Encoding:
        """Encodes a text whose words are special tokens in a vocabulary of words or pieces.

        Each is cut after its first character, so that it becomes other tokens.
        """
        cuts = (
            f"(?<={re.escape(special[0])})(?={re.escape(special[1:])})"
            for special in filter(None, self._special.values())
        )
        self._backend.encode_special_tokens = True
        parts = [
            encode(self._backend, part, self._place, special=False)
            for part in re.split("|".join(cuts), text)
        ]
        encoding = Encoding.merge(parts, growing_offsets=True)
        if inside := self._special_inside(encoding):
            found = sorted({self._special[token] for token in inside})
            raise UserError(
                f"{self._place} encodes the text {text[:60]!r} as the special tokens {found}, "
                "which must not occur in text to train on; remove them"
            )
        return encoding

    @functools.cached_property
    def eos_id(self) -> int | None:
        """The token that the user or a file names; see the base class."""
        if self._eos is None:
            return next(iter(find_eos_ids(self._folder, self.vocab_size)), None)
        token = self._backend.token_to_id(self._eos) if is_unicode(self._eos) else None
        if token is None:
            raise UserError(
                f"{self._place}: it has no token {self._eos!r} to end a sequence; {self._listed}"
            )
        return token

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the tokenizer consists of."""
        content = blake2b(self._backend.to_str().encode()).hexdigest()
        return f"{content} {self.eos_id} {VERSION}"

    @property
    def _listed(self) -> str:
        return f"its special tokens are {[*self._special.values()]}"
