"""The arguments that all attention kernels share, and how arrays are made to fit them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.layers.attention.mask import MaskSpec

PADDING = np.iinfo(np.int32).max  # segment id that fills up the last tile; it sees only itself


class Call(NamedTuple):
    """The arguments of a kernel beside queries, keys and values: the mask, and how scores are made.

    Args:
        mask_spec: the rules by position.
        positions_BS: of all keys; B may be 1. They increase within a segment.
        segment_ids_BS: of all keys; tokens see only tokens with the same id. None: one segment.
        scale: factor of the scores.
        softcap: replaces scores by `softcap * tanh(scores / softcap)`. None: leaves them.
        sinks_N: the score of one more key for each head, whose value is zero. None: no such key.
        order: row i has the indices, among all keys, of the queries of shard i.
        shard: the row of `order` with this call's queries.
    """

    mask_spec: MaskSpec
    positions_BS: Array
    segment_ids_BS: Array | None
    scale: float
    softcap: float | None = None
    sinks_N: Array | None = None
    order: np.ndarray = np.zeros((1, 0), int)
    shard: Array | int = 0

    @property
    def indices(self) -> Array:
        """The index of each query among the keys, T."""
        return jnp.asarray(self.order)[self.shard]

    @property
    def segments(self) -> Array:
        """The segment ids of all keys, BS; B may be 1."""
        if self.segment_ids_BS is None:
            return jnp.zeros((1, self.order.size), jnp.int32)
        return self.segment_ids_BS


Apply = Callable[[Array, Array, Array, Call], Array]  # of queries, keys and values


def round_up(length: int, tile: int) -> int:
    """Returns the length rounded up to a multiple of a tile's."""
    return -(-length // tile) * tile


def padded(x: Array, length: int, value: int = 0) -> Array:
    """Pads axis 1 at its end to a length."""
    beside = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, beside, constant_values=value)


def repeat_kv(kv_BSKH: Array, n_rep: int) -> Array:
    """Repeats each key/value head for its `n_rep` consecutive query heads, BSNH.

    For attention functions without grouped heads; `attention` needs no copies.
    """
    return jnp.repeat(kv_BSKH, n_rep, axis=2)


def without_nan_keys(k_BSKH: Array, v_BSKH: Array) -> Array:
    """Returns the values, with 0 for those whose key is NaN, BSKH.

    A query that sees such a key has a score of NaN. To the others, its value would be 0 * NaN.
    """
    return jnp.where(jnp.isnan(k_BSKH).any(-1, keepdims=True), 0, v_BSKH)
