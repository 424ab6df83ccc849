"""Which tiles of the scores a kernel computes: those in which a query may see a key."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxllm.layers.attention.mask import MaskSpec


class Tokens(NamedTuple):
    """The tokens along one side of the scores; B may be 1.

    Args:
        index_BT: places in the sequence.
        positions_BT: increase with the index within a segment.
        segment_ids_BT: tokens see only tokens with the same id.
    """

    index_BT: Array
    positions_BT: Array
    segment_ids_BT: Array

    def bounds(self, size: int) -> tuple[Self, Self]:
        """Returns the least and the greatest numbers of each tile of `size` tokens, BR."""
        tiles = [x.reshape(x.shape[0], -1, size) for x in self]
        return type(self)(*(x.min(-1) for x in tiles)), type(self)(*(x.max(-1) for x in tiles))


def visible_tiles(
    mask_spec: MaskSpec, queries: Tokens, keys: Tokens, sizes: tuple[int, int]
) -> tuple[Array, Array]:
    """Returns whether any query of a tile may see any key, and whether all see all, BRC.

    Args:
        mask_spec: the rules by position.
        queries: of R tiles.
        keys: of C tiles.
        sizes: tokens of a tile of queries and of keys.
    """
    low, high = ([x[:, :, None] for x in bound] for bound in queries.bounds(sizes[0]))
    least, most = ([x[:, None, :] for x in bound] for bound in keys.bounds(sizes[1]))
    (low_index, low_at, low_id), (high_index, high_at, high_id) = low, high
    (least_index, least_at, least_id), (most_index, most_at, most_id) = least, most
    some = (low_id <= most_id) & (least_id <= high_id)
    every = (low_id == high_id) & (least_id == most_id) & (low_id == least_id)
    if mask_spec.causal:
        some &= least_index <= high_index
        every &= most_index <= low_index
    if mask_spec.lookback is not None:
        some &= low_index - most_index < mask_spec.lookback
    if mask_spec.window is not None:
        every &= high_at - least_at < mask_spec.window
    if mask_spec.chunk is not None:
        first, last = (jnp.minimum(low_at, least_at), jnp.maximum(high_at, most_at))
        every &= first // mask_spec.chunk == last // mask_spec.chunk
    return some, some & every


def tile_ranges(some_BRC: Array, every_BRC: Array) -> Array:
    """Returns for each row of tiles the range to compute and the part of it without a mask.

    Args:
        some_BRC: the tiles to compute; those between the first and the last are computed too.
        every_BRC: the tiles that need no mask.

    Returns:
        (B, R, 4): the first tile, the first of a range without a mask, its end, and the end.
    """
    C = some_BRC.shape[-1]
    columns = jnp.arange(C)
    first = jnp.min(jnp.where(some_BRC, columns, C), axis=-1)
    end = jnp.max(jnp.where(some_BRC, columns + 1, 0), axis=-1)
    first = jnp.minimum(first, end)
    start = jnp.minimum(jnp.min(jnp.where(every_BRC, columns, C), axis=-1), end)
    masked_after = ~every_BRC & (columns >= start[..., None])
    stop = jnp.minimum(jnp.min(jnp.where(masked_after, columns, C), axis=-1), end)
    return jnp.stack([first, start, stop, end], axis=-1).astype(jnp.int32)
