"""Packing: documents side by side in rows, whole where they fit, or each in a row of its own."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxllm.train.data.batches import Batch

from .windows import Tokens, TokenStream


class Pieces(NamedTuple):
    """Parts of documents: where each begins in the stream, and its tokens."""

    starts: np.ndarray
    lengths: np.ndarray


class Rows(NamedTuple):
    """Which pieces are in which row: those of row `i` are `order[first[i] : first[i + 1]]`."""

    order: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class Packed:
    """Rows of T+1 tokens, each with one or several pieces of documents, and padding behind them.

    Pieces see only themselves, at positions that begin at 0; the first token of each is no target.
    """

    tokens: Tokens
    seq_len: int
    pieces: Pieces
    rows: Rows
    is_target: Tokens | None = None  # None: all tokens are targets

    def __len__(self) -> int:
        return len(self.rows.first) - 1

    @property
    def num_tokens(self) -> int:
        """The tokens of all rows, without padding."""
        return int(self.pieces.lengths.sum())

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Returns a batch as `Windows.take` does, with `segment_ids` and `positions`."""
        shape = len(rows), self.seq_len + 1
        places, positions = np.zeros((2, *shape), np.int64)
        segments = np.zeros(shape, np.int32)
        for row, number in enumerate(rows):
            end = 0
            first, last = self.rows.first[number : number + 2]
            for segment, piece in enumerate(self.rows.order[first:last], start=1):
                begin, length = end, int(self.pieces.lengths[piece])
                end += length
                count = np.arange(length)
                places[row, begin:end] = self.pieces.starts[piece] + count
                positions[row, begin:end], segments[row, begin:end] = count, segment
        exists, own = segments > 0, segments[:, :-1]
        mask = exists[:, 1:] & (segments[:, 1:] == own)
        if self.is_target is not None:
            mask &= self.is_target[places[:, 1:]]
        return {
            "tokens": np.where(exists, self.tokens[places], 0).astype(np.int32),
            "mask": mask,
            "segment_ids": own,
            "positions": positions[:, :-1].astype(np.int32),
        }


def pack(stream: TokenStream, seq_len: int, how: Literal["best_fit", "padded"]) -> Packed:
    """Packs the documents of a stream into rows of `seq_len + 1` tokens.

    Documents that are longer are cut into pieces that share one token, so that no target is lost.

    Args:
        stream: the documents.
        seq_len: T.
        how: "best_fit" puts several into a row, "padded" one.
    """
    starts = stream.find_starts()
    pieces = cut(starts, np.diff(starts, append=len(stream.tokens)), seq_len)
    if how == "best_fit":
        rows = best_fit(pieces.lengths, seq_len + 1)
    else:
        count = np.arange(len(pieces.starts) + 1)
        rows = Rows(count[:-1], count)
    return Packed(stream.tokens, seq_len, pieces, rows, stream.is_target)


def cut(starts: np.ndarray, lengths: np.ndarray, seq_len: int) -> Pieces:
    """Cuts documents into pieces of at most T+1 tokens; neighbors share one token.

    Documents of a single token have nothing to predict, and are left out.
    """
    counts = np.maximum(-(-(lengths - 1) // seq_len), 0)
    document = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = within * seq_len
    return Pieces(starts[document] + offset, np.minimum(lengths[document] - offset, seq_len + 1))


def best_fit(lengths: np.ndarray, capacity: int) -> Rows:
    """Packs pieces by best fit, the longest first: each goes where the least room is left.

    Rows with equal lengths in them are counted rather than listed (Krell et al., 2021), so that
    the work beyond sorting depends on `capacity` alone.

    Args:
        lengths: from 1 to `capacity`.
        capacity: tokens in a row.
    """
    kinds: dict[int, list[tuple[tuple[int, ...], int]]] = {}  # by room: lengths, number of rows
    rooms: list[int] = []  # those of `kinds`, in order
    counts = np.bincount(lengths, minlength=capacity + 1)

    def add(room: int, held: tuple[int, ...], count: int) -> None:
        if count:
            if room not in kinds:
                bisect.insort(rooms, room)
                kinds[room] = []
            kinds[room].append((held, count))

    for length in map(int, np.flatnonzero(counts)[::-1]):
        left = int(counts[length])
        while left:
            place = bisect.bisect_left(rooms, length)
            if place < len(rooms):
                room = rooms[place]
                held, count = kinds[room].pop()
                if not kinds[room]:
                    del kinds[room], rooms[place]
            else:
                room, held, count = capacity, (), left
            # A row that takes one piece has the least room for the next, until it is full.
            many = room // length
            full, rest = divmod(min(left, count * many), many)
            add(room - many * length, (*held, *(length,) * many), full)
            add(room - rest * length, (*held, *(length,) * rest), int(rest > 0))
            if held:
                add(room, held, count - full - (rest > 0))
            left -= full * many + rest
    return _assigned(lengths, [kind for room in rooms for kind in kinds[room]])


def _assigned(lengths: np.ndarray, kinds: list[tuple[tuple[int, ...], int]]) -> Rows:
    """Gives each row the next pieces of the lengths that it holds."""
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(np.bincount(lengths)) if len(lengths) else np.zeros(0, np.int64)
    taken = np.zeros(len(ends), np.int64)
    found, sizes = [], []
    for held, count in kinds:
        columns = []
        for length in sorted(set(held), reverse=True):
            many = held.count(length) * count
            taken[length] += many
            last = ends[length] - taken[length] + many
            columns.append(order[last - many : last].reshape(count, -1))
        found.append(np.concatenate(columns, axis=1).reshape(-1))
        sizes.append(np.full(count, len(held)))
    joined = np.concatenate([np.zeros(0, np.int64), *found])
    return Rows(joined, np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes])))
