"""Keys and values of the tokens seen so far."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxllm.config import DecoderConfig
from jaxllm.sharding import constrain


class KVCache(NamedTuple):
    """Keys and values of one layer. Slot `c` of a row holds that row's token at position `c`.

    Everything follows from that sentence: rows may be of different lengths, a query at position
    p sees the slots up to p, and what lies beyond (a longer row's padding) is hidden until it is
    overwritten.
    """

    k_BCKH: Array
    v_BCKH: Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch_size: int, length: int) -> Self:
        """A cache of `length` slots for each of `batch_size` rows."""
        shape = (batch_size, length, config.num_kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

    @property
    def length(self) -> int:
        """The number of slots."""
        return self.k_BCKH.shape[-3]

    def write(self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array) -> Self:
        """The cache with these tokens in it.

        A token at a position past the last slot is dropped, and so is one at position -1, which
        is padding. The positions may have 1 for B.
        """
        slots_BT = jnp.where(positions_BT < 0, self.length, positions_BT)
        slots = jnp.arange(k_BTKH.shape[0])[:, None], slots_BT
        return type(self)(
            constrain(self.k_BCKH.at[slots].set(k_BTKH), "BCKH"),
            constrain(self.v_BCKH.at[slots].set(v_BTKH), "BCKH"),
        )


Caches = dict[str, KVCache]  # of a whole model, by the labels of its layers, stacked as they are
