"""Tokenizers in other files than `tokenizer.json`, read by transformers' `AutoTokenizer`."""

import contextlib
import io
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, SupportsInt

from jaxllm.errors import MissingPackageError, UserError

from .file_tokenizer import VERSION, FileTokenizer
from .special_tokens import find_eos_ids
from .tokenizer import Tokenizer

# Files of SentencePiece, tiktoken and tokenizers written in Python.
PATTERNS = (
    *("*.model", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.bpe", "tokenizer_config.json"),
)


def is_other_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer other than `tokenizer.json`."""
    return any(next(folder.glob(pattern), None) is not None for pattern in PATTERNS)


def read_other_tokenizer(folder: Path, *, eos: str | None = None) -> Tokenizer:
    """Reads the tokenizer of a folder with transformers; code in the folder is never run.

    Raises:
        MissingPackageError: transformers, or a package that it needs for these files, is missing.
        UserError: transformers cannot read the files.
    """
    files = ", ".join(sorted({file.name for name in PATTERNS for file in folder.glob(name)}))
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackageError(
            f"{folder} has no tokenizer.json; to read its {files}, install transformers: pip "
            "install 'jaxllm[torch]'; or save a tokenizer.json there with transformers"
        ) from None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            given: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        raise MissingPackageError(_unreadable(folder, files, error)) from None
    except Exception as error:  # of any class, from parsers of damaged files
        raise UserError(_unreadable(folder, files, error)) from None
    if given.is_fast:
        return FileTokenizer(given.backend_tokenizer, folder, eos=eos or given.eos_token)
    return PythonTokenizer(given, folder, eos=eos)


def _unreadable(folder: Path, files: str, error: Exception) -> str:
    """Returns the message for a tokenizer that transformers cannot read, and what to install."""
    said = " ".join(str(error).split())[:300]
    return (
        f"{folder} has no tokenizer.json, and transformers cannot read its {files}: {said}; for "
        "*.model install sentencepiece, for *.tiktoken tiktoken, for tekken.json mistral-common; "
        "or save a tokenizer.json there"
    )


class PythonTokenizer(Tokenizer):
    """A tokenizer of transformers that is written in Python.

    Raises UserError if `eos` is not in its vocabulary.
    """

    def __init__(self, backend: Any, folder: Path, *, eos: str | None = None):
        self._backend = backend
        vocabulary = backend.get_vocab()
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        text = eos or backend.eos_token
        if text is not None and text not in vocabulary:
            raise UserError(f"{folder}: it has no token {text!r} to end a sequence")
        named = () if text is not None else find_eos_ids(folder, self.vocab_size)
        self.eos_id = next(iter(named), None) if text is None else vocabulary[text]
        self.bos_id = backend.bos_token_id
        tokens = repr((type(backend).__name__, sorted(vocabulary.items()))).encode()
        self.fingerprint = f"{blake2b(tokens).hexdigest()} {self.eos_id} {VERSION}"

    def _ids(self, text: str, *, with_special: bool, trusted: bool) -> list[int]:
        return list(
            self._backend.encode(
                text, add_special_tokens=with_special, split_special_tokens=not trusted
            )
        )

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Decodes `ids` to text, including special tokens."""
        return str(self._backend.decode([int(token) for token in ids]))
