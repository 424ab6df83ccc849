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

    def write(self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array) -> Self:
        """The cache with these tokens in it. A position past the last slot is dropped."""
        slots = jnp.arange(positions_BT.shape[0])[:, None], positions_BT
        return type(self)(
            constrain(self.k_BCKH.at[slots].set(k_BTKH), "BCKH"),
            constrain(self.v_BCKH.at[slots].set(v_BTKH), "BCKH"),
        )

    def visible(self, positions_BT: Array) -> Array:
        """Which slots a query at each position may see, BTC."""
        return jnp.arange(self.k_BCKH.shape[1]) <= positions_BT[..., None]


# Of a whole model: stacked along a leading L, or one for each layer.
Caches = KVCache | tuple[KVCache, ...]
