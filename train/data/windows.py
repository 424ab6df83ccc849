"""Windows of equal length over a stream of documents, each with its own segment and positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .batches import Batch


@dataclass(frozen=True)
class TokenStream:
    """The tokens of documents, one document after the other, and where each begins."""

    tokens: np.ndarray
    starts: np.ndarray  # int64, increasing; the first is 0


@dataclass(frozen=True)
class Windows:
    """Windows of T+1 tokens over a stream; row `i` starts at token `i * T`.

    Neighboring windows share one token, so that no target is lost between them. Positions past the
    end of `tokens` are padded with 0 and masked out.

    With `starts`, the tokens of a window see only tokens of their own document, at positions that
    begin at 0, and the first token of a document is no target: nothing before it is of the same
    document. Without, a window is one text, and every token but the stream's first is a target.
    """

    tokens: np.ndarray
    seq_len: int
    starts: np.ndarray | None = None  # index of the first token of each document

    def __len__(self) -> int:
        return max(0, -(-(len(self.tokens) - 1) // self.seq_len))

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Returns `tokens`, int32 (B, T+1), and `mask`, bool (B, T): which targets count.

        With `starts` also `segment_ids` and `positions`, int32 (B, T). Ids begin at 1 in each
        window, and 0 is padding.
        """
        places = np.asarray(rows, np.int64)[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        exists = places < len(self.tokens)
        found = self.tokens[np.minimum(places, len(self.tokens) - 1)]
        batch = {"tokens": np.where(exists, found, 0).astype(np.int32), "mask": exists[:, 1:]}
        if self.starts is None:
            return batch
        document = np.searchsorted(self.starts, places, side="right")  # 1 for the first
        own, of_target = document[:, :-1], document[:, 1:]
        # A document that began in an earlier window begins again with this one.
        first = np.maximum(self.starts[own - 1], places[:, :1])
        return {
            "tokens": batch["tokens"],
            "mask": batch["mask"] & (own == of_target),
            "segment_ids": np.where(exists[:, :-1], own - own[:, :1] + 1, 0).astype(np.int32),
            "positions": (places[:, :-1] - first).astype(np.int32),
        }
