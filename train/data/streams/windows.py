"""Windows of equal length over a stream of documents, each with its own segment and positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxllm.train.data.batches import Batch

CHUNK = 1 << 24  # tokens that are searched at a time for the ends of documents


class Tokens(Protocol):
    """A one-dimensional array, in memory or in files."""

    @property
    def dtype(self) -> np.dtype:
        """The type of the items."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any) -> np.ndarray: ...


class Starts(Tokens, Protocol):
    """Where documents begin, in order."""

    def searchsorted(self, places: np.ndarray, side: Any = "left") -> np.ndarray:
        """Returns for each place how many documents begin before it, or "right", also at it."""
        ...


@dataclass(frozen=True)
class TokenStream:
    """The tokens of documents, one document after the other, and where each begins."""

    tokens: Tokens
    starts: Starts | None  # int64, increasing; the first is 0. None: documents end with `ends_with`
    # Which tokens are targets; None: all of them. Only what an assistant writes, in a chat.
    is_target: Tokens | None = None
    ends_with: int | None = None  # the token that ends documents, where no file says where

    def find_starts(self) -> np.ndarray:
        """Returns where documents begin, in memory; without a file that says so, by reading all."""
        if self.starts is not None:
            return np.asarray(self.starts[:])
        begins = [np.zeros(min(1, len(self.tokens)), np.int64)]
        for first in range(0, len(self.tokens) - 1, CHUNK):
            chunk = self.tokens[first : min(first + CHUNK, len(self.tokens) - 1)]
            begins.append(np.flatnonzero(chunk == self.ends_with) + first + 1)
        return np.concatenate(begins)


@dataclass(frozen=True)
class Windows:
    """Windows of T+1 tokens over a stream; row `i` starts at token `i * T`.

    Neighboring windows share one token, so that no target is lost between them. Positions past the
    end of `tokens` are padded with 0 and masked out.

    With `starts` or `ends_with`, the tokens of a window see only tokens of their own document, at
    positions that begin at 0, and the first token of a document is no target: nothing before it is
    of the same document. Without, a window is one text, and every token but the stream's first is a
    target.
    """

    tokens: Tokens
    seq_len: int
    starts: Starts | None = None  # index of the first token of each document
    is_target: Tokens | None = None  # None: all tokens are targets
    ends_with: int | None = None  # the last token of each document

    def __len__(self) -> int:
        return max(0, -(-(len(self.tokens) - 1) // self.seq_len))

    @property
    def num_tokens(self) -> int:
        """The tokens of all windows, without padding."""
        return len(self.tokens)

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Returns `tokens`, int32 (B, T+1), and `mask`, bool (B, T): which targets count.

        With documents also `segment_ids` and `positions`, int32 (B, T). Ids begin at 1 in each
        window, and 0 is padding.
        """
        places = np.asarray(rows, np.int64)[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        exists = places < len(self.tokens)
        found = self.tokens[np.minimum(places, len(self.tokens) - 1)]
        batch = {"tokens": np.where(exists, found, 0).astype(np.int32), "mask": exists[:, 1:]}
        if self.is_target is not None:
            targets = np.minimum(places[:, 1:], len(self.tokens) - 1)
            batch["mask"] = batch["mask"] & self.is_target[targets]
        if self.starts is not None:
            document = self.starts.searchsorted(places, side="right")  # 1 for the first
        elif self.ends_with is not None:
            ended = np.cumsum(found[:, :-1] == self.ends_with, axis=1)
            document = np.insert(ended, 0, 0, axis=1)
        else:
            return batch
        own, of_target = document[:, :-1], document[:, 1:]
        # A document that began in an earlier window begins again with this one.
        count = np.arange(self.seq_len)
        begins = np.insert(own[:, 1:] != own[:, :-1], 0, True, axis=1)
        first = np.maximum.accumulate(np.where(begins, count, 0), axis=1)
        return {
            "tokens": batch["tokens"],
            "mask": batch["mask"] & (own == of_target),
            "segment_ids": np.where(exists[:, :-1], own - own[:, :1] + 1, 0).astype(np.int32),
            "positions": (count - first).astype(np.int32),
        }
