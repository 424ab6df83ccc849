"""Text data: documents tokenized into two streams and cut into windows of `seq_len` tokens."""

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
    """Text data: the source files, the tokenizer and the fraction that is held out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    text: tuple[str, ...] | None = None  # .txt, .jsonl files or globs; None: Python's stdlib source
    text_key: str = "text"  # key of the text in each line of a .jsonl file
    tokenizer: str | None = None  # tokenizer.json or its folder; None: tokens are bytes
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    held_out: float = 0.02  # fraction of the documents that is never trained on
    seed: int = 0  # for the order of the training windows
    cache: str | None = None  # folder for token files, reused by later runs; None: no cache

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads the text as windows for `model`.

        Raises:
            UserError: the model is not a Decoder, or a file or the tokenizer is not usable.
            OSError: a file is missing or cannot be read.
        """
        if not isinstance(model, Decoder):
            raise UserError(
                f"text trains a Decoder, but the model class of this run is {type(model).__name__}"
            )
        corpus = load_corpus(self)
        check_tokens(corpus.tokenizer, model)
        return corpus.windows(seq_len)


@dataclass(frozen=True)
class Corpus:
    """Token streams of the training and the held-out documents, each ended by `eos_id`."""

    train: np.ndarray
    held_out: np.ndarray
    tokenizer: Tokenizer

    def windows(self, seq_len: int) -> Examples:
        """Cuts both streams into examples of `seq_len` tokens."""
        digests = {"train_tokens": digest(self.train), "held_out_tokens": digest(self.held_out)}
        train, held_out = Windows(self.train, seq_len), Windows(self.held_out, seq_len)
        return Examples(train, held_out, {**digests, "seq_len": seq_len})


def load_corpus(cfg: DataConfig) -> Corpus:
    """Reads the documents, splits off the held-out ones and tokenizes both.

    Raises:
        UserError: a file or the tokenizer is not usable.
        FileNotFoundError: a file is missing, or a pattern matches no file.
    """
    tokenizer = load_tokenizer(cfg.tokenizer, eos=cfg.eos)
    if cfg.text is None:
        documents = stdlib_documents()
    else:
        documents = text_documents(cfg.text, key=cfg.text_key)
    train, held_out = split_documents(documents, cfg.held_out)
    return Corpus(
        token_stream(train, tokenizer, cache=cfg.cache),
        token_stream(held_out, tokenizer, cache=cfg.cache),
        tokenizer,
    )


def token_stream(
    documents: Sequence[str], tokenizer: Tokenizer, *, cache: str | None = None
) -> np.ndarray:
    """Tokenizes documents into one array, in the smallest unsigned dtype that holds every id.

    Args:
        documents: texts; an end-of-sequence token follows each.
        tokenizer: its fingerprint and the texts determine the name of the cache file.
        cache: a folder. Its file is memory-mapped if it exists and written otherwise.
    """
    if cache is None:
        return _tokenize(documents, tokenizer)
    digest = blake2b(tokenizer.fingerprint.encode(), digest_size=16)
    for text in documents:
        digest.update(b"%d " % len(text) + text.encode())
    file = Path(cache) / f"{digest.hexdigest()}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{uuid4().hex}.npy")  # other processes may write it too
        np.save(unfinished, _tokenize(documents, tokenizer))
        unfinished.replace(file)
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class Windows:
    """Windows of T+1 tokens over a stream; row `i` starts at token `i * T`.

    Neighboring windows share one token, so that every token but the stream's first is a target
    exactly once. Positions past the end of `tokens` are padded with 0 and masked out.
    """

    tokens: np.ndarray
    seq_len: int

    def __len__(self) -> int:
        return max(0, -(-(len(self.tokens) - 1) // self.seq_len))

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Returns `tokens`, int32 (B, T+1), and `mask`, bool (B, T): which targets count."""
        positions = np.asarray(rows)[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        exists = positions < len(self.tokens)
        found = self.tokens[np.minimum(positions, len(self.tokens) - 1)]
        return {"tokens": np.where(exists, found, 0).astype(np.int32), "mask": exists[:, 1:]}


def _tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    ended = (np.array([*tokenizer.encode(text), tokenizer.eos_id], dtype) for text in documents)
    return np.concatenate([np.empty(0, dtype), *ended])
