"""Which tokens a query sees."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxllm.config import LayerKind, StackConfig


class MaskSpec(NamedTuple):
    """Which keys of its own sequence a query may attend to, by positions."""

    causal: bool = True  # nothing after itself
    window: int | None = None  # this many tokens, itself the last of them
    chunk: int | None = None  # of the tokens 0 to chunk - 1, chunk to 2 chunk - 1, ... its own

    @classmethod
    def from_config(cls, config: StackConfig, kind: LayerKind) -> Self:
        """The mask of a layer of this kind."""
        return cls(
            causal=config.attention.causal,
            window=config.attention.window if kind.sees == "window" else None,
            chunk=config.attention.chunk if kind.sees == "chunk" else None,
        )

    def mask(self, queries_BT: Array, keys_BS: Array) -> Array:
        """Whether the query at each position sees the key at each, BTS. B may be 1."""
        q_BT1, k_B1S = queries_BT[:, :, None], keys_BS[:, None, :]
        mask_BTS = (q_BT1 >= k_B1S) if self.causal else jnp.ones((1, 1, 1), bool)
        if self.window is not None:
            mask_BTS &= q_BT1 - k_B1S < self.window
        if self.chunk is not None:
            mask_BTS &= q_BT1 // self.chunk == k_B1S // self.chunk
        return mask_BTS

    @property
    def lookback(self) -> int | None:
        """Of how many tokens, itself the last, a query sees some at most; None: of all."""
        return min(filter(None, (self.window, self.chunk)), default=None)

    def key_range(self, start: int, stop: int, length: int) -> slice:
        """All that the queries from `start` to `stop` may see, of a sequence of this length."""
        reach = length if self.lookback is None else self.lookback
        return slice(max(0, start + 1 - reach), stop if self.causal else length)


def same_segment(queries_BT: Array, keys_BS: Array) -> Array:
    """Whether a query and a key belong to the same segment, BTS."""
    return queries_BT[:, :, None] == keys_BS[:, None, :]
