"""Keys and values of the tokens seen so far."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxllm.config import LayerKind, StackConfig
from jaxllm.sharding import constrain

from .mask import MaskSpec

NOWHERE = 1 << 30  # the position of a key that no query sees: after all of them


class KVCache(NamedTuple):
    """Keys and values of one layer. Slot `c` of a row holds that row's token at position `c`.

    Everything follows from that sentence: rows may be of different lengths, a query at position
    p sees the slots up to p, and what lies beyond (a longer row's padding) is hidden until it is
    overwritten.
    """

    k_BCKH: Array
    v_BCKH: Array

    @classmethod
    def empty(cls, config: StackConfig, batch_size: int, length: int) -> Self:
        """A cache of `length` slots for each of `batch_size` rows."""
        shape = (batch_size, length, config.num_kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, config.numerics.dtype), jnp.zeros(shape, config.numerics.dtype))

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

    def extend(
        self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array
    ) -> tuple[Self, tuple[Array, Array, Array]]:
        """The cache with these tokens in it, and what they may see: keys, values, positions BS."""
        written = self.write(k_BTKH, v_BTKH, positions_BT)
        return written, (*written, jnp.arange(self.length)[None])


class RingCache(NamedTuple):
    """Keys and values of a layer that never looks back further than its slots.

    A token at position p is in slot p modulo C, until one C positions later takes its place. Its
    position stands beside it. A row's tokens come in the order of their positions, and padding,
    which would take a token's place, is at position -1.
    """

    k_BCKH: Array
    v_BCKH: Array
    positions_BC: Array  # NOWHERE if the slot is empty

    @classmethod
    def empty(cls, config: StackConfig, batch_size: int, length: int) -> Self:
        """A cache of `length` slots for each of `batch_size` rows."""
        plain = KVCache.empty(config, batch_size, length)
        return cls(*plain, jnp.full((batch_size, length), NOWHERE, jnp.int32))

    @property
    def length(self) -> int:
        """The number of slots."""
        return self.positions_BC.shape[-1]

    def write(self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array) -> Self:
        """The cache with these tokens in it, or the last of them if they are more than its slots.

        The positions may have 1 for B.
        """
        positions_BT = jnp.broadcast_to(positions_BT, k_BTKH.shape[:2]).astype(jnp.int32)
        last_B1 = positions_BT.max(axis=1, keepdims=True)
        is_kept_BT = (positions_BT >= 0) & (positions_BT > last_B1 - self.length)
        slots_BT = jnp.where(is_kept_BT, positions_BT % self.length, self.length)  # past: dropped
        slots = jnp.arange(k_BTKH.shape[0])[:, None], slots_BT
        return type(self)(
            constrain(self.k_BCKH.at[slots].set(k_BTKH), "BCKH"),
            constrain(self.v_BCKH.at[slots].set(v_BTKH), "BCKH"),
            constrain(self.positions_BC.at[slots].set(positions_BT), "BC"),
        )

    def extend(
        self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array
    ) -> tuple[Self, tuple[Array, Array, Array]]:
        """The cache with these tokens in it, and what they may see: keys, values, positions BS.

        One token takes the place of one that it does not see. The first of several sees what the
        last of them overwrites: they see the cache as it was, and each other.
        """
        written = self.write(k_BTKH, v_BTKH, positions_BT)
        if k_BTKH.shape[1] == 1:
            return written, written
        fresh_BT = jnp.broadcast_to(positions_BT, k_BTKH.shape[:2])
        fresh_BT = jnp.where(fresh_BT < 0, NOWHERE, fresh_BT).astype(jnp.int32)
        # What is being written again is no longer seen as it was.
        is_old_BC = self.positions_BC < fresh_BT.min(axis=1, keepdims=True)
        seen_BC = jnp.where(is_old_BC, self.positions_BC, NOWHERE)
        return written, (
            jnp.concatenate([self.k_BCKH, k_BTKH], axis=1),
            jnp.concatenate([self.v_BCKH, v_BTKH], axis=1),
            jnp.concatenate([seen_BC, fresh_BT], axis=1),
        )


class SourceKV(NamedTuple):
    """One layer's keys and values of an encoder's output."""

    k_BSKH: Array
    v_BSKH: Array
    segment_ids_BS: Array


Cache = KVCache | RingCache


class CrossCache(NamedTuple):
    """The cache of a layer with cross-attention: of the target so far, and of the source."""

    target: Cache
    source: SourceKV


LayerCache = Cache | CrossCache
# Of a stack of layers, by their labels; stacked along a leading L as the layers are.
Caches = dict[str, LayerCache]


def make_cache(config: StackConfig, kind: LayerKind, batch_size: int, length: int) -> Cache:
    """An empty cache for a layer of this kind: of `length` slots, or of those that it looks back.

    Raises ValueError if tokens see those after them, so that none is ever done with.
    """
    if not config.attention.causal:
        raise ValueError("a cache with attention.causal=False: tokens would see those to come")
    reach = MaskSpec.from_config(config, kind).lookback
    if reach is None or length <= reach:
        return KVCache.empty(config, batch_size, length)
    return RingCache.empty(config, batch_size, reach)
