"""Tokenizers in other files than `tokenizer.json`, read by transformers' `AutoTokenizer`."""

import contextlib
import functools
import importlib.util
import io
import re
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
    if missing := _missing_packages(folder):
        needing, packages = (" and ".join(names) for names in (missing.values(), missing))
        raise MissingPackageError(
            f"{folder} has no tokenizer.json; to read its {needing}, install {packages}: pip "
            f"install {' '.join(missing)}; or save a tokenizer.json there with transformers"
        )
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            given: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of any class, from parsers of damaged files
        raise UserError(_unreadable(folder, files, error)) from None
    if _reads_nothing(given, folder):
        kind = type(given).__name__
        raise UserError(_unreadable(folder, files, f"{kind} reads other files"))
    if given.is_fast:
        return FileTokenizer(given.backend_tokenizer, folder, eos=eos or given.eos_token)
    return PythonTokenizer(given, folder, eos=eos)


def _reads_nothing(given: Any, folder: Path) -> bool:
    """Whether a tokenizer found no file of its vocabulary and made up one, as transformers does."""
    names = [*given.vocab_files_names.values()]
    return bool(names) and not any((folder / name).is_file() for name in names)


def _missing_packages(folder: Path) -> dict[str, str]:
    """Returns the packages that transformers needs for a folder and that are not installed.

    Each comes with the file that needs it.
    """
    needed = {"tekken.json": "mistral-common"} if (folder / "tekken.json").is_file() else {}
    for file in sorted([*folder.glob("*.model"), *folder.glob("*.tiktoken")]):
        with file.open("rb") as stream:
            head = stream.read(1000)
        if head.startswith(b"\n"):  # the tag of the pieces in SentencePiece's protocol buffer
            needed[file.name] = "sentencepiece"
        elif re.match(rb"[A-Za-z0-9+/=]+ [0-9]+\r?\n", head):  # a token in base64, and its rank
            needed[file.name] = "tiktoken"
    return {
        package: name
        for name, package in needed.items()
        if importlib.util.find_spec(package.replace("-", "_")) is None
    }


def _unreadable(folder: Path, files: str, error: object) -> str:
    """Returns the message for a tokenizer that transformers cannot read."""
    said = " ".join(str(error).split())[:300]
    return (
        f"{folder} has no tokenizer.json, and transformers cannot read its {files}: {said}; save a "
        "tokenizer.json there"
    )


class PythonTokenizer(Tokenizer):
    """A tokenizer of transformers that is written in Python."""

    def __init__(self, backend: Any, folder: Path, *, eos: str | None = None):
        self._backend, self._folder, self._eos = backend, folder, eos or backend.eos_token
        self._vocabulary: dict[str, int] = backend.get_vocab()
        self.vocab_size = 1 + max(self._vocabulary.values(), default=-1)
        self.bos_id = backend.bos_token_id
        special = {*backend.all_special_ids}
        self.special_ids = sorted(special - {backend.unk_token_id})

    @functools.cached_property
    def eos_id(self) -> int | None:
        """The token that the user or a file names; see the base class."""
        if self._eos is None:
            return next(iter(find_eos_ids(self._folder, self.vocab_size)), None)
        if self._eos not in self._vocabulary:
            raise UserError(f"{self._folder}: it has no token {self._eos!r} to end a sequence")
        return self._vocabulary[self._eos]

    @property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and the tokenizer's class."""
        tokens = repr((type(self._backend).__name__, sorted(self._vocabulary.items())))
        return f"{blake2b(tokens.encode()).hexdigest()} {self.eos_id} {VERSION}"

    def _ids(self, text: str, *, with_special: bool, trusted: bool) -> list[int]:
        return list(
            self._backend.encode(
                text, add_special_tokens=with_special, split_special_tokens=not trusted
            )
        )

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Decodes `ids` to text, including special tokens."""
        return str(self._backend.decode([int(token) for token in ids]))
