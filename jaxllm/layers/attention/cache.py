"""Key/value caches: full, ring-buffer, and for cross-attention."""

from typing import Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxllm.config import LayerKind, StackConfig
from jaxllm.sharding import constrain

from .mask import MaskSpec
from .recurrent_cache import DeltaCache

# Of keys and values in a cache; int8 with a scale for each head of each token.
CacheDtype = Literal["float32", "bfloat16", "float16", "int8"]
NOWHERE = 1 << 30  # position of a key that no query sees, since it lies after every query


class Rounded(NamedTuple):
    """Numbers in int8, with a scale for each head of each token: their largest one is 127."""

    x_BCKH: Array
    scale_BCK1: Array

    @classmethod
    def of(cls, x_BTKH: Array) -> Self:
        """Rounds numbers."""
        x_BTKH = x_BTKH.astype(jnp.float32)
        largest_BTK1 = jnp.abs(x_BTKH).max(axis=-1, keepdims=True)
        scale_BTK1 = jnp.where(largest_BTK1 > 0, largest_BTK1 / 127, 1)
        return cls(jnp.round(x_BTKH / scale_BTK1).astype(jnp.int8), scale_BTK1)


# Keys or values in a cache, in any dtype.
Stored = Array | Rounded


def _empty(shape: tuple[int, ...], dtype: CacheDtype) -> Stored:
    if dtype == "int8":
        return Rounded(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-1], 1), jnp.float32))
    return jnp.zeros(shape, dtype)


def _set(stored: Stored, slots: tuple[Array, Array], x_BTKH: Array) -> Stored:
    """Writes numbers to slots; those past the last slot are dropped."""
    if isinstance(stored, Rounded):
        x, scale = Rounded.of(x_BTKH)
        return Rounded(
            constrain(stored.x_BCKH.at[slots].set(x), "BCKH"),
            constrain(stored.scale_BCK1.at[slots].set(scale), "BCK."),
        )
    return constrain(stored.at[slots].set(x_BTKH.astype(stored.dtype)), "BCKH")


def _get(stored: Stored, dtype: DTypeLike) -> Array:
    """Returns the numbers in a dtype, BCKH."""
    if isinstance(stored, Rounded):
        return (stored.x_BCKH * stored.scale_BCK1).astype(dtype)
    return stored.astype(dtype)


class KVCache(NamedTuple):
    """Keys and values of one layer. Slot `c` of a row holds that row's token at position `c`.

    Rows may therefore have different lengths. A query at position p sees slots 0 to p; slots
    beyond, such as padding, are masked until they are overwritten.
    """

    k_BCKH: Stored
    v_BCKH: Stored

    @classmethod
    def empty(
        cls, config: StackConfig, batch_size: int, length: int, dtype: CacheDtype | None = None
    ) -> Self:
        """A cache of `length` slots for each of `batch_size` rows; by default in the own dtype."""
        shape = (batch_size, length, config.num_kv_heads, config.head_dim)
        dtype = dtype or config.numerics.dtype
        return cls(_empty(shape, dtype), _empty(shape, dtype))

    @property
    def length(self) -> int:
        """The number of slots."""
        return jax.tree.leaves(self.k_BCKH)[0].shape[-3]

    def write(self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array) -> Self:
        """Returns the cache with these tokens written to the slots of their positions.

        Drops tokens at positions past the last slot, and padding, which is at position -1. B of
        the positions may be 1.
        """
        slots_BT = jnp.where(positions_BT < 0, self.length, positions_BT)
        slots = jnp.arange(k_BTKH.shape[0])[:, None], slots_BT
        return type(self)(_set(self.k_BCKH, slots, k_BTKH), _set(self.v_BCKH, slots, v_BTKH))

    def extend(
        self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array
    ) -> tuple[Self, tuple[Array, Array, Array]]:
        """Writes tokens; returns the cache and the keys, values and positions (BS) they may see."""
        written = self.write(k_BTKH, v_BTKH, positions_BT)
        k_BCKH, v_BCKH = (_get(stored, k_BTKH.dtype) for stored in written)
        return written, (k_BCKH, v_BCKH, jnp.arange(self.length)[None])


class RingCache(NamedTuple):
    """Ring-buffer cache of a layer whose lookback is at most its number of slots C.

    A token at position p is in slot p modulo C, together with its position, until the token at
    p + C overwrites it. The tokens of a row must come in the order of their positions. Padding is
    at position -1, so that it overwrites no token.
    """

    k_BCKH: Stored
    v_BCKH: Stored
    positions_BC: Array  # NOWHERE if the slot is empty

    @classmethod
    def empty(
        cls, config: StackConfig, batch_size: int, length: int, dtype: CacheDtype | None = None
    ) -> Self:
        """A cache of `length` slots for each of `batch_size` rows; by default in the own dtype."""
        plain = KVCache.empty(config, batch_size, length, dtype)
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
            _set(self.k_BCKH, slots, k_BTKH),
            _set(self.v_BCKH, slots, v_BTKH),
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
            k_BCKH, v_BCKH = (_get(stored, k_BTKH.dtype) for stored in written[:2])
            return written, (k_BCKH, v_BCKH, written.positions_BC)
        fresh_BT = jnp.broadcast_to(positions_BT, k_BTKH.shape[:2])
        fresh_BT = jnp.where(fresh_BT < 0, NOWHERE, fresh_BT).astype(jnp.int32)
        # Old entries at positions that are being rewritten are masked.
        is_old_BC = self.positions_BC < fresh_BT.min(axis=1, keepdims=True)
        seen_BC = jnp.where(is_old_BC, self.positions_BC, NOWHERE)
        return written, (
            jnp.concatenate([_get(self.k_BCKH, k_BTKH.dtype), k_BTKH], axis=1),
            jnp.concatenate([_get(self.v_BCKH, v_BTKH.dtype), v_BTKH], axis=1),
            jnp.concatenate([seen_BC, fresh_BT], axis=1),
        )


class LatentCache(NamedTuple):
    """Latents and rotated keys of latent attention: P numbers for a token, which all heads share.

    Slots are those of `KVCache`. Its size is `kv_rank + rope_dim`, where keys and values would have
    `num_heads * (head_dim + value_dim)` (DeepSeek-AI, 2024, table 1).
    """

    x_BCKH: Stored  # of one head, H = P

    @classmethod
    def empty(
        cls, config: StackConfig, batch_size: int, length: int, dtype: CacheDtype | None = None
    ) -> Self:
        """A cache of `length` slots for each of `batch_size` rows; by default in the own dtype."""
        latent = config.attention.latent
        assert latent is not None, "checked by the caller"
        shape = (batch_size, length, 1, latent.kv_rank + latent.rope_dim)
        return cls(_empty(shape, dtype or config.numerics.dtype))

    @property
    def length(self) -> int:
        """The number of slots."""
        return jax.tree.leaves(self.x_BCKH)[0].shape[-3]

    def write(self, x_BTKH: Array, positions_BT: Array) -> Self:
        """Returns the cache with these tokens written, as `KVCache.write` does."""
        slots_BT = jnp.where(positions_BT < 0, self.length, positions_BT)
        slots = jnp.arange(x_BTKH.shape[0])[:, None], slots_BT
        return type(self)(_set(self.x_BCKH, slots, x_BTKH))

    def extend(self, x_BTKH: Array, positions_BT: Array) -> tuple[Self, tuple[Array, Array]]:
        """Writes tokens; returns the cache, what it holds, BCKH, and the positions, BS."""
        written = self.write(x_BTKH, positions_BT)
        return written, (_get(written.x_BCKH, x_BTKH.dtype), jnp.arange(self.length)[None])


class SourceKV(NamedTuple):
    """Keys and values of an encoder's output in one layer."""

    k_BSKH: Array
    v_BSKH: Array
    segment_ids_BS: Array


class NothingWritten(NamedTuple):
    """A cache whose content does not count: the tokens to come see only each other.

    Attention then needs no keys but theirs, as without a cache, and works in blocks or by a kernel.
    """

    cache: KVCache | RingCache | LatentCache | DeltaCache

    def write(self, *tokens: Array) -> KVCache | RingCache | LatentCache:
        """Returns the cache with these tokens written."""
        assert not isinstance(self.cache, DeltaCache), "which a layer clears instead"
        return self.cache.write(*tokens)


Cache = KVCache | RingCache | LatentCache | DeltaCache | NothingWritten


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


def make_cache(
    config: StackConfig,
    kind: LayerKind,
    batch_size: int,
    length: int,
    dtype: CacheDtype | None = None,
    spare: int = 0,
) -> Cache:
    """Returns an empty cache of `length` slots, or of as many as the layer looks back.

    It is in `dtype`, by default that of the model's activations. A ring has `spare` more slots: the
    last `spare` tokens may be taken back, by writing others to their positions.

    Raises ValueError if attention is not causal: later tokens would change earlier ones; and if
    tokens of a recurrent state may be taken back.
    """
    if not config.attention.causal:
        raise ValueError(
            "a cache with attention.causal=False is impossible: later tokens would change the "
            "outputs of earlier ones"
        )
    if kind.attention == "delta":
        if spare:
            raise ValueError(f"spare={spare}: no token of a recurrent state can be taken back")
        return DeltaCache.empty(config, batch_size)
    if config.attention.latent is not None:
        return LatentCache.empty(config, batch_size, length, dtype)
    reach = MaskSpec.from_config(config, kind).lookback
    if reach is None or length <= reach + spare:
        return KVCache.empty(config, batch_size, length, dtype)
    return RingCache.empty(config, batch_size, reach + spare, dtype)
