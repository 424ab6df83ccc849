"""Batches of examples, each a pure function of the seed and the step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import grain
import jax
import numpy as np

from jaxllm.errors import UserError

# Arrays by name, whose rows are examples. `mask` says which of their targets count; the rest of
# the names is between the data and `objective`.
Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """Examples by their numbers."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Batch:
        """The examples of these numbers."""
        ...


class Examples(NamedTuple):
    """What is learned from, what is never trained on, and how to know them again."""

    train: Rows
    held_out: Rows
    fingerprint: Mapping[str, Any]  # plain data, the same wherever the examples are


@dataclass(frozen=True)
class Table:
    """Examples that lie in arrays."""

    arrays: Batch

    def __len__(self) -> int:
        return len(self.arrays["mask"])

    def take(self, rows: np.ndarray) -> Batch:
        """The examples of these numbers."""
        return {name: array[rows] for name, array in self.arrays.items()}

    def digest(self) -> str:
        """What tells these arrays from others."""
        return " ".join(f"{name} {digest(array)}" for name, array in self.arrays.items())


class Batches:
    """The batches of a run, of which this process feeds rows `rank::world`.

    By default each process feeds its own share. Where a model is split over processes, those with
    the same part of the batch must be given the same `rank`. Raises UserError if there are too
    few examples for one batch or if `batch_size` does not divide among the processes.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.rank = jax.process_index() if rank is None else rank
        self.world = jax.process_count() if world is None else world
        if batch_size % self.world:
            raise UserError(f"batch_size={batch_size} does not divide by {self.world} processes")
        if (have := self.examples_per_epoch) < batch_size:
            raise UserError(f"batch_size={batch_size}, but only {have} examples to train on")

    @property
    def examples_per_epoch(self) -> int:
        """Rows until every target has been seen; an epoch may end within a batch."""
        return len(self.examples.train)

    def train(self, step: int = 0) -> grain.DatasetIterator[Batch]:
        """Batches of `step` and on, without end; its state is the number of the next step."""
        shuffled = grain.MapDataset.range(self.examples_per_epoch).seed(self.seed).shuffle()
        # Repeat, then deal out: a process's share of a step does not depend on the epoch's length.
        share = shuffled.repeat()[self.rank :: self.world]
        rows = share.batch(self.batch_size // self.world, drop_remainder=True)
        batches = rows.map(lambda rows: self.examples.train.take(np.asarray(rows)))
        # No threads: cutting a batch from memory takes less time than handing it over.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        iterator = iter(batches.to_iter_dataset(options))
        iterator.set_state({"next_index": step})
        return iterator

    def held_out(self, most: int) -> Iterator[Batch]:
        """The same batches at every call: examples in order, at `most` so many batches.

        If there are more examples, they are taken evenly from all of them. Rows that fill up the
        last batch are masked out. No batches if nothing is held out.
        """
        there, B = len(self.examples.held_out), self.batch_size
        taken = min(there, most * B)
        rows = np.arange(taken) * there // max(taken, 1)
        filled = np.append(rows, np.zeros(-taken % B, rows.dtype))
        is_there = np.arange(len(filled)) < taken
        for start in range(0, taken, B):
            own = slice(start + self.rank, start + B, self.world)
            batch = self.examples.held_out.take(filled[own])
            counts = is_there[own].reshape(-1, *(1,) * (batch["mask"].ndim - 1))
            yield {**batch, "mask": batch["mask"] & counts}

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches of a run, whatever the number of processes."""
        return {**self.examples.fingerprint, "batch_size": self.batch_size, "seed": self.seed}


def digest(array: np.ndarray) -> str:
    """What tells an array from others."""
    kept = np.ascontiguousarray(array)
    return f"{array.dtype} {blake2b(kept.data, digest_size=16).hexdigest()}"
