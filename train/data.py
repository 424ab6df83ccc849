"""Token streams cut into batches, each a pure function of the seed and the step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import grain
import jax
import numpy as np

from .text import Tokenizer, load_tokenizer, split_documents, stdlib_documents, text_documents

Batch = dict[str, np.ndarray]  # tokens: int32 (B, T+1); mask: bool (B, T), true where a target is


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
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} is not in [0, 1)")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} is not in [0, 2**32)")


@dataclass(frozen=True)
class Corpus:
    """Two streams of tokens, each document followed by the tokenizer's `eos_id`."""

    train: np.ndarray
    held_out: np.ndarray
    tokenizer: Tokenizer


def load_corpus(cfg: DataConfig) -> Corpus:
    """Reads, splits and tokenises. Raises ValueError or FileNotFoundError naming what is bad."""
    tokenizer = corpus_tokenizer(cfg)
    found = stdlib_documents() if cfg.text is None else text_documents(cfg.text, key=cfg.text_key)
    train, held_out = split_documents(found, cfg.held_out)
    return Corpus(
        token_stream(train, tokenizer, cache=cfg.cache),
        token_stream(held_out, tokenizer, cache=cfg.cache),
        tokenizer,
    )


def corpus_tokenizer(cfg: DataConfig) -> Tokenizer:
    """The tokenizer of a run."""
    return load_tokenizer(cfg.tokenizer, eos=cfg.eos)


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


def windows(tokens: np.ndarray, rows: Sequence[int] | np.ndarray, seq_len: int) -> Batch:
    """Row `i` is the T+1 tokens from `i * T` on: all but the first token are targets, once each.

    What lies past the end of `tokens` is 0 and masked out, be it part of a row or a whole row.
    """
    at = np.asarray(rows)[:, None] * seq_len + np.arange(seq_len + 1)
    exists = at < len(tokens)
    found = tokens[np.minimum(at, len(tokens) - 1)]
    return {"tokens": np.where(exists, found, 0).astype(np.int32), "mask": exists[:, 1:]}


class Batches:
    """The batches of a run, of which this process feeds rows `rank::world`.

    By default each process feeds its own share. Where a model is split over processes, those with
    the same part of the batch must be given the same `rank`. Raises ValueError if there is too
    little text for one batch or if `batch_size` does not divide among the processes.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ):
        self.corpus, self.seq_len, self.batch_size, self.seed = corpus, seq_len, batch_size, seed
        self.rank = jax.process_index() if rank is None else rank
        self.world = jax.process_count() if world is None else world
        if batch_size % self.world:
            raise ValueError(f"batch_size={batch_size} does not divide by {self.world} processes")
        have, need = len(corpus.train), batch_size * seq_len + 1
        if have < need:
            batch = f"a batch of {batch_size} x {seq_len}"
            raise ValueError(f"{batch} needs {need} tokens; the training text has {have}")

    @property
    def windows_per_epoch(self) -> int:
        """Rows until every target has been seen; an epoch may end within a batch."""
        return _num_windows(self.corpus.train, self.seq_len)

    def train(self, step: int = 0) -> grain.DatasetIterator[Batch]:
        """Batches of `step` and on, without end; its state is the number of the next step."""
        shuffled = grain.MapDataset.range(self.windows_per_epoch).seed(self.seed).shuffle()
        # Repeat, then deal out: a process's share of a step does not depend on the epoch's length.
        share = shuffled.repeat()[self.rank :: self.world]
        rows = share.batch(self.batch_size // self.world, drop_remainder=True)
        batches = rows.map(lambda rows: windows(self.corpus.train, rows, self.seq_len))
        # No threads: cutting a batch from memory takes less time than handing it over.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        iterator = iter(batches.to_iter_dataset(options))
        iterator.set_state({"next_index": step})
        return iterator

    def held_out(self, most: int) -> Iterator[Batch]:
        """The same batches at every call: windows in order, at `most` so many batches.

        If there are more windows, they are taken evenly from all of the text. Rows that fill up
        the last batch are masked out. No batches if nothing is held out.
        """
        tokens, B = self.corpus.held_out, self.batch_size
        there = _num_windows(tokens, self.seq_len)
        taken = min(there, most * B)
        rows = np.arange(taken) * there // max(taken, 1)
        filled = np.append(rows, np.full(-taken % B, there))
        for start in range(0, taken, B):
            yield windows(tokens, filled[start : start + B][self.rank :: self.world], self.seq_len)

    def fingerprint(self) -> dict[str, int | str]:
        """What decides the batches of a run, whatever the number of processes."""
        return {
            "train_tokens": _digest(self.corpus.train),
            "held_out_tokens": _digest(self.corpus.held_out),
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


def _tokenise(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    ended = (np.array([*tokenizer.encode(text), tokenizer.eos_id], dtype) for text in documents)
    return np.concatenate([np.empty(0, dtype), *ended])


def _num_windows(tokens: np.ndarray, seq_len: int) -> int:
    return max(0, -(-(len(tokens) - 1) // seq_len))


def _digest(tokens: np.ndarray) -> str:
    return f"{tokens.dtype} {blake2b(tokens.data, digest_size=16).hexdigest()}"
