"""Text as two streams of tokens, cut into windows of the length of a sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model

from .batches import Batch, Examples, digest
from .held_out import check_split
from .text import split_documents, stdlib_documents, text_documents
from .tokenizers import Tokenizer, check_tokens, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where text comes from, how it becomes tokens, and what part of it is never trained on."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    text: tuple[str, ...] | None = None  # .txt and .jsonl files or globs; None: Python's library
    text_key: str = "text"  # where a line of a .jsonl file has its text
    tokenizer: str | None = None  # a tokenizer.json or its folder; None: tokens are bytes
    eos: str | None = None  # the token that ends a document, if the folder does not name it
    held_out: float = 0.02  # fraction of the documents
    seed: int = 0  # of the order in which windows are seen
    cache: str | None = None  # a folder that keeps tokens from run to run; None: tokenise each time

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed)

    def load(self, model: Model, seq_len: int) -> Examples:
        """The text as windows. Raises UserError or OSError naming what is bad."""
        if not isinstance(model, Decoder):
            raise UserError(f"text trains a Decoder, not the {type(model).__name__} of this run")
        corpus = load_corpus(self)
        check_tokens(corpus.tokenizer, model)
        return corpus.windows(seq_len)


@dataclass(frozen=True)
class Corpus:
    """Two streams of tokens, each document followed by the tokenizer's `eos_id`."""

    train: np.ndarray
    held_out: np.ndarray
    tokenizer: Tokenizer

    def windows(self, seq_len: int) -> Examples:
        """Both streams as examples of `seq_len` tokens."""
        known = {"train_tokens": digest(self.train), "held_out_tokens": digest(self.held_out)}
        train, held_out = Windows(self.train, seq_len), Windows(self.held_out, seq_len)
        return Examples(train, held_out, {**known, "seq_len": seq_len})


def load_corpus(cfg: DataConfig) -> Corpus:
    """Reads, splits and tokenises. Raises UserError or FileNotFoundError naming what is bad."""
    tokenizer = load_tokenizer(cfg.tokenizer, eos=cfg.eos)
    found = stdlib_documents() if cfg.text is None else text_documents(cfg.text, key=cfg.text_key)
    train, held_out = split_documents(found, cfg.held_out)
    return Corpus(
        token_stream(train, tokenizer, cache=cfg.cache),
        token_stream(held_out, tokenizer, cache=cfg.cache),
        tokenizer,
    )


def token_stream(
    documents: Sequence[str], tokenizer: Tokenizer, *, cache: str | None = None
) -> np.ndarray:
    """All tokens in one array of the smallest type; mapped from `cache` if they are there."""
    if cache is None:
        return _tokenise(documents, tokenizer)
    digest = blake2b(tokenizer.fingerprint.encode(), digest_size=16)
    for text in documents:
        digest.update(b"%d " % len(text) + text.encode())
    file = Path(cache) / f"{digest.hexdigest()}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{uuid4().hex}.npy")  # other processes may write it too
        np.save(unfinished, _tokenise(documents, tokenizer))
        unfinished.replace(file)
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class Windows:
    """Row `i` is the T+1 tokens from `i * T` on: all but the first token are targets, once each.

    What lies past the end of `tokens` is 0 and masked out.
    """

    tokens: np.ndarray
    seq_len: int

    def __len__(self) -> int:
        return max(0, -(-(len(self.tokens) - 1) // self.seq_len))

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Tokens, int32 (B, T+1), and a mask of the targets, (B, T)."""
        at = np.asarray(rows)[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        exists = at < len(self.tokens)
        found = self.tokens[np.minimum(at, len(self.tokens) - 1)]
        return {"tokens": np.where(exists, found, 0).astype(np.int32), "mask": exists[:, 1:]}


def _tokenise(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    ended = (np.array([*tokenizer.encode(text), tokenizer.eos_id], dtype) for text in documents)
    return np.concatenate([np.empty(0, dtype), *ended])
