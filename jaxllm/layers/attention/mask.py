"""Attention masks: causal, sliding window, chunks and segments."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxllm.config import LayerKind, StackConfig


class MaskSpec(NamedTuple):
    """Rules of which keys a query may attend to, by position."""

    causal: bool = True  # no keys after the query
    window: int | None = None  # only the last `window` tokens, the query's own included
    chunk: int | None = None  # only the query's chunk: 0 to chunk - 1, chunk to 2 chunk - 1, ...

    @classmethod
    def from_config(cls, config: StackConfig, kind: LayerKind) -> Self:
        """Returns the mask of a layer of this kind."""
        return cls(
            causal=config.attention.causal,
            window=config.attention.window if kind.attention == "window" else None,
            chunk=config.attention.chunk if kind.attention == "chunk" else None,
        )

    def mask(self, queries_BT: Array, keys_BS: Array) -> Array:
        """Returns whether the query at each position sees the key at each, BTS. B may be 1."""
        return self.sees(queries_BT[:, :, None], keys_BS[:, None, :])

    def sees(self, queries: Array, keys: Array) -> Array:
        """Returns whether queries see keys, element by element; sizes of 1 are repeated."""
        mask = (queries >= keys) if self.causal else jnp.ones((1,) * queries.ndim, bool)
        if self.window is not None:
            mask &= queries - keys < self.window
        if self.chunk is not None:
            mask &= queries // self.chunk == keys // self.chunk
        return mask

    @property
    def lookback(self) -> int | None:
        """The most tokens up to its own that a query may see; None: no limit."""
        return min(filter(None, (self.window, self.chunk)), default=None)

    def key_range(self, start: int, stop: int, length: int) -> slice:
        """Returns the range of keys that the queries from `start` to `stop` may see.

        `length` is that of the whole sequence.
        """
        reach = length if self.lookback is None else self.lookback
        return slice(max(0, start + 1 - reach), stop if self.causal else length)


def same_segment(queries_BT: Array, keys_BS: Array) -> Array:
    """Returns whether a query and a key belong to the same segment, BTS."""
    return queries_BT[:, :, None] == keys_BS[:, None, :]
