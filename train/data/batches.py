"""Batching: shuffled training batches and fixed held-out ones, determined by seed and step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from jaxllm.errors import UserError

# Arrays by name, with one row per example. `mask` says which targets count; the other names are
# agreed between the data and `objective`.
Batch = dict[str, np.ndarray]
MOST_STEPS = 2**40


class Rows(Protocol):
    """Examples with random access by row number."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Batch:
        """Returns the examples at these row numbers as a batch."""
        ...


class Examples(NamedTuple):
    """Training examples, held-out examples, and a fingerprint that identifies both."""

    train: Rows
    held_out: Rows
    fingerprint: Mapping[str, Any]  # plain data that depends on the content, not on its location


@dataclass(frozen=True)
class ArrayRows:
    """Examples stored as the rows of arrays."""

    arrays: Batch

    def __len__(self) -> int:
        return len(self.arrays["mask"])

    def take(self, rows: np.ndarray) -> Batch:
        """Returns the examples at these row numbers as a batch."""
        return {name: array[rows] for name, array in self.arrays.items()}

    def digest(self) -> str:
        """Returns a hash of the names and contents of the arrays."""
        return " ".join(f"{name} {digest(array)}" for name, array in self.arrays.items())


def check_batch_size(examples: Examples, batch_size: int) -> None:
    """Raises UserError if there are too few training examples for one batch."""
    if (available := len(examples.train)) < batch_size:
        raise UserError(
            f"batch_size={batch_size}, but there are only {available} training examples"
        )


class Batches:
    """The batches of a run, of which this process reads its own rows.

    Args:
        examples: training and held-out examples.
        batch_size: rows per batch, over all processes.
        seed: determines the order of the training examples.
        rows: the numbers of the rows of each batch that this process reads; by default all.

    Raises:
        UserError: there are too few examples for one batch.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        seed: int = 0,
        rows: np.ndarray | None = None,
    ):
        check_batch_size(examples, batch_size)
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.rows = np.arange(batch_size) if rows is None else rows

    @property
    def examples_per_epoch(self) -> int:
        """The number of training examples; an epoch may end within a batch."""
        return len(self.examples.train)

    def train(self, step: int = 0) -> grain.DatasetIterator[Batch]:
        """Returns an endless iterator of this process's batches, from `step` on.

        The state of the iterator is the number of the next step.
        """
        shuffled = grain.MapDataset.range(self.examples_per_epoch).seed(self.seed).shuffle()
        order = shuffled.repeat()  # a batch may span two epochs

        def take(step: int) -> Batch:
            places = step * self.batch_size + self.rows
            return self.examples.train.take(np.array([order[int(place)] for place in places]))

        batches = grain.MapDataset.range(MOST_STEPS).map(take)
        # No threads: slicing a batch from memory is faster than passing it between threads.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        iterator = iter(batches.to_iter_dataset(options))
        iterator.set_state({"next_index": step})
        return iterator

    def held_out(self, most: int) -> Iterator[Batch]:
        """Yields at most `most` held-out batches: the same ones, in order, at every call.

        If they cannot hold all examples, evenly spaced ones are used. Rows that pad the last batch
        are masked out. Yields nothing if nothing is held out.
        """
        available, B = len(self.examples.held_out), self.batch_size
        taken = min(available, most * B)
        rows = np.arange(taken) * available // max(taken, 1)
        padded = np.append(rows, np.zeros(-taken % B, rows.dtype))
        is_real = np.arange(len(padded)) < taken
        for start in range(0, taken, B):
            share = start + self.rows
            batch = self.examples.held_out.take(padded[share])
            counts = is_real[share].reshape(-1, *(1,) * (batch["mask"].ndim - 1))
            yield {**batch, "mask": batch["mask"] & counts}

    def fingerprint(self) -> dict[str, Any]:
        """Returns all that determines the batches; independent of the number of processes."""
        return {**self.examples.fingerprint, "batch_size": self.batch_size, "seed": self.seed}


def digest(array: np.ndarray) -> str:
    """Returns the dtype and a BLAKE2b hash of an array's contents."""
    contiguous = np.ascontiguousarray(array)
    return f"{array.dtype} {blake2b(contiguous.data, digest_size=16).hexdigest()}"
