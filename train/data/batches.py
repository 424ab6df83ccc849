"""Batching: shuffled training batches and fixed held-out ones, determined by seed and step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from jaxllm.errors import UserError

if TYPE_CHECKING:
    import grain

# Arrays by name, with one row per example. `mask` says which targets count; the other names are
# agreed between the data and `objective`.
Batch = dict[str, np.ndarray]
MOST_STEPS = 2**40
PERIOD = 2**16  # places over which the sources of a mixture have their shares


class Rows(Protocol):
    """Examples with random access by row number."""

    def __len__(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """Tokens or vectors of all rows, without padding."""
        ...

    def take(self, rows: np.ndarray) -> Batch:
        """Returns the examples at these row numbers as a batch."""
        ...


class Mixing(NamedTuple):
    """The sources of a mixture, whose rows follow each other, and how often each has a turn."""

    names: tuple[str, ...]
    lengths: tuple[int, ...]  # rows of each
    shares: tuple[float, ...]  # of the rows of batches, in any unit


class Examples(NamedTuple):
    """Training examples, held-out examples, and a fingerprint that identifies both."""

    train: Rows
    held_out: Rows
    fingerprint: Mapping[str, Any]  # plain data that depends on the content, not on its location
    mixing: Mixing | None = None  # None: there is one source


@dataclass(frozen=True)
class ArrayRows:
    """Examples stored as the rows of arrays."""

    arrays: Batch

    def __len__(self) -> int:
        return len(self.arrays["mask"])

    @property
    def num_tokens(self) -> int:
        """Targets of all rows."""
        return int(self.arrays["mask"].sum())

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


def check_epochs(examples: Examples, steps: int, batch_size: int, data: Any) -> None:
    """Raises UserError if a run takes the rows of a source more often than its `max_epochs`.

    Args:
        examples: of the run.
        steps: of the whole run.
        batch_size: rows of a step.
        data: the config of the data; that of a mixture has the sources by name.
    """
    sources = getattr(data, "mixture", {"": data})
    mixing, places = examples.mixing, steps * batch_size
    if mixing is None:
        lengths, taken = [len(examples.train)], np.array([places])
    else:
        source, _ = interleave(mixing.shares)
        periods, rest = divmod(places, len(source))
        count = partial(np.bincount, minlength=len(mixing.names))
        lengths, taken = list(mixing.lengths), periods * count(source) + count(source[:rest])
    problems = []
    for (name, own), length, used in zip(sources.items(), lengths, taken, strict=True):
        most = getattr(own, "max_epochs", None)
        if most is not None and used > most * length:
            place = f"data.mixture.{name}" if name else "data"
            field = dataclasses.fields(own)[0].name
            problems.append(
                f"{place}.{field}={getattr(own, field)!r} runs out: {steps:,} steps take {used:,} "
                f"of its rows, but it has {length:,}, and max_epochs={most} allows "
                f"{most * length:,}, which last for about {steps * most * length // used:,} steps; "
                "lower steps, add data, or raise max_epochs"
            )
    if problems:
        raise UserError("\n".join(problems))


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

    def train(self, step: int = 0) -> "grain.DatasetIterator[Batch]":
        """Returns an endless iterator of this process's batches, from `step` on.

        The state of the iterator is the number of the next step.
        """
        import grain  # it takes a while, and reading a config needs none

        row_at = make_order(self.examples, self.seed)

        def take(step: int) -> Batch:
            places = step * self.batch_size + self.rows
            return self.examples.train.take(np.array([row_at(int(place)) for place in places]))

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


def make_order(examples: Examples, seed: int) -> Callable[[int], int]:
    """Returns the function from a place in the endless sequence of rows to the row's number.

    Each takes the same time. Rows come again in another order when all were used; those of a
    mixture by source, whose turns are spread evenly.
    """
    mixing = examples.mixing
    if mixing is None:
        return shuffled(len(examples.train), seed).__getitem__
    source, turn = interleave(mixing.shares)
    turns = np.bincount(source)
    firsts = np.cumsum([0, *mixing.lengths])
    seeds = np.random.SeedSequence(seed).generate_state(len(mixing.lengths))
    orders = [
        shuffled(length, int(each)) for length, each in zip(mixing.lengths, seeds, strict=True)
    ]

    def row_at(place: int) -> int:
        period, within = divmod(place, len(source))
        number = int(source[within])
        return int(firsts[number]) + orders[number][period * int(turns[number]) + int(turn[within])]

    return row_at


def shuffled(length: int, seed: int) -> "grain.MapDataset[int]":
    """Returns the numbers below `length` in an order by the seed, again and again."""
    import grain

    return grain.MapDataset.range(length).seed(seed).shuffle().repeat()


def interleave(shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Spreads turns of several sources evenly over a period of `PERIOD` or a few more places.

    Returns:
        Which source has each place, and how many turns it had before in the period.
    """
    counts = np.maximum(1, np.rint(np.array(shares) / sum(shares) * PERIOD)).astype(int)
    source = np.repeat(np.arange(len(counts)), counts)
    turn = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort((turn + 0.5) / counts[source], kind="stable")
    return source[order], turn[order]


def digest(array: np.ndarray) -> str:
    """Returns the dtype and a BLAKE2b hash of an array's contents."""
    contiguous = np.ascontiguousarray(array)
    return f"{array.dtype} {blake2b(contiguous.data, digest_size=16).hexdigest()}"
