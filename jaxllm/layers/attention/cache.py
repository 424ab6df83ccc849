"""Key/value caches: full, ring-buffer, and for cross-attention."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxllm.config import LayerKind, StackConfig
from jaxllm.sharding import constrain

from .mask import MaskSpec

NOWHERE = 1 << 30  # position of a key that no query sees, since it lies after every query


class KVCache(NamedTuple):
    """Keys and values of one layer. Slot `c` of a row holds that row's token at position `c`.

    Rows may therefore have different lengths. A query at position p sees slots 0 to p; slots
    beyond, such as padding, are masked until they are overwritten.
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
        """Returns the cache with these tokens written to the slots of their positions.

        Drops tokens at positions past the last slot, and padding, which is at position -1. B of
        the positions may be 1.
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
        """Writes tokens; returns the cache and the keys, values and positions (BS) they may see."""
        written = self.write(k_BTKH, v_BTKH, positions_BT)
        return written, (*written, jnp.arange(self.length)[None])


class RingCache(NamedTuple):
    """Ring-buffer cache of a layer whose lookback is at most its number of slots C.

    A token at position p is in slot p modulo C, together with its position, until the token at
    p + C overwrites it. The tokens of a row must come in the order of their positions. Padding is
    at position -1, so that it overwrites no token.
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
        """Returns the cache with these tokens written, or with the last C if there are more.

        B of the positions may be 1.
        """
        positions_BT = jnp.broadcast_to(positions_BT, k_BTKH.shape[:2]).astype(jnp.int32)
        last_B1 = positions_BT.max(axis=1, keepdims=True)
        is_kept_BT = (positions_BT >= 0) & (positions_BT > last_B1 - self.length)
        # Writes past the last slot are dropped.
        slots_BT = jnp.where(is_kept_BT, positions_BT % self.length, self.length)
        slots = jnp.arange(k_BTKH.shape[0])[:, None], slots_BT
        return type(self)(
            constrain(self.k_BCKH.at[slots].set(k_BTKH), "BCKH"),
            constrain(self.v_BCKH.at[slots].set(v_BTKH), "BCKH"),
            constrain(self.positions_BC.at[slots].set(positions_BT), "BC"),
        )

    def extend(
        self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array
    ) -> tuple[Self, tuple[Array, Array, Array]]:
        """Writes tokens; returns the cache and the keys, values and positions (BS) they may see.

        A single token overwrites only a token that it does not see. Among several tokens, the
        first may see what the last overwrites, so they attend to the old cache and to each other.
        """
        written = self.write(k_BTKH, v_BTKH, positions_BT)
        if k_BTKH.shape[1] == 1:
            return written, written
        fresh_BT = jnp.broadcast_to(positions_BT, k_BTKH.shape[:2])
        fresh_BT = jnp.where(fresh_BT < 0, NOWHERE, fresh_BT).astype(jnp.int32)
        # Old entries at positions that are being rewritten are masked.
        is_old_BC = self.positions_BC < fresh_BT.min(axis=1, keepdims=True)
        seen_BC = jnp.where(is_old_BC, self.positions_BC, NOWHERE)
        return written, (
            jnp.concatenate([self.k_BCKH, k_BTKH], axis=1),
            jnp.concatenate([self.v_BCKH, v_BTKH], axis=1),
            jnp.concatenate([seen_BC, fresh_BT], axis=1),
        )


class SourceKV(NamedTuple):
    """Keys and values of an encoder's output in one layer."""

    k_BSKH: Array
    v_BSKH: Array
    segment_ids_BS: Array


class NothingWritten(NamedTuple):
    """A cache whose content does not count: the tokens to come see only each other.

    Attention then needs no keys but theirs, as without a cache, and works in blocks or by a kernel.
    """

    cache: KVCache | RingCache

    def write(self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array) -> KVCache | RingCache:
        """Returns the cache with these tokens written."""
        return self.cache.write(k_BTKH, v_BTKH, positions_BT)


Cache = KVCache | RingCache | NothingWritten


class CrossCache(NamedTuple):
    """Cache of a layer with cross-attention: the target so far, and the source."""

    target: Cache
    source: SourceKV


LayerCache = Cache | CrossCache
# The caches of a stack by layer label, stacked along a leading L where the layers are.
Caches = dict[str, LayerCache]


def with_nothing_written(caches: Caches) -> Caches:
    """Returns caches whose content does not count, for the first tokens of each row."""

    def reset(cache: LayerCache) -> LayerCache:
        if isinstance(cache, CrossCache):
            return CrossCache(reset(cache.target), cache.source)  # type: ignore[arg-type]
        return NothingWritten(cache)  # type: ignore[arg-type]

    return {label: reset(cache) for label, cache in caches.items()}


def make_cache(config: StackConfig, kind: LayerKind, batch_size: int, length: int) -> Cache:
    """Returns an empty cache of `length` slots, or of as many as the layer looks back.

    Raises ValueError if attention is not causal: later tokens would change earlier ones.
    """
    if not config.attention.causal:
        raise ValueError(
            "a cache with attention.causal=False is impossible: later tokens would change the "
            "outputs of earlier ones"
        )
    reach = MaskSpec.from_config(config, kind).lookback
    if reach is None or length <= reach:
        return KVCache.empty(config, batch_size, length)
    return RingCache.empty(config, batch_size, reach)
