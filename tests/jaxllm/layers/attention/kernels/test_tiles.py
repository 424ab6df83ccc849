"""The tiles that kernels compute hold every visible score, and few others."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.layers.attention.kernels.tiles import Tokens, tile_ranges, visible_tiles
from jaxllm.layers.attention.mask import MaskSpec, same_segment

T, QUERIES, KEYS = 96, 16, 8
SPECS = [MaskSpec(), MaskSpec(window=20), MaskSpec(chunk=24), MaskSpec(causal=False)]


def tokens(is_packed: bool) -> Tokens:
    ids, at = np.zeros((2, T), np.int32), np.tile(np.arange(T), (2, 1))
    if is_packed:
        starts = [[0, 5, 40, 41, 80], [0, 32, 64, 70, 90]]
        ids = np.stack([np.searchsorted(row, at[0], side="right") for row in starts])
        pairs = zip(starts, ids, strict=True)
        at = np.stack([at[0] - np.array(row)[own - 1] for row, own in pairs])
    return Tokens(jnp.arange(T)[None], jnp.asarray(at), jnp.asarray(ids))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_tiles_are_left_out_only_where_nothing_is_seen(spec, is_packed):
    side = tokens(is_packed)
    seen = spec.mask(side.positions_BT, side.positions_BT)
    seen &= same_segment(side.segment_ids_BT, side.segment_ids_BT)
    by_tile = np.asarray(seen).reshape(2, T // QUERIES, QUERIES, T // KEYS, KEYS)
    some, every = visible_tiles(spec, side, side, (QUERIES, KEYS))
    assert np.all(some | ~by_tile.any((2, 4)))
    np.testing.assert_array_equal(every, by_tile.all((2, 4)))
    if not is_packed and spec.chunk is None:  # chunks and documents are bounded less tightly
        np.testing.assert_array_equal(some, by_tile.any((2, 4)))


def test_ranges_cover_the_tiles_and_have_an_unmasked_part():
    some = np.array([[[0, 1, 1, 1, 1, 0], [0] * 6, [1] * 6, [0, 1, 0, 1, 0, 0]]], bool)
    every = np.array([[[0, 0, 1, 1, 0, 0], [0] * 6, [1] * 6, [0, 1, 0, 0, 0, 0]]], bool)
    expected = [[1, 2, 4, 5], [0, 0, 0, 0], [0, 0, 6, 6], [1, 1, 2, 4]]
    np.testing.assert_array_equal(tile_ranges(some, every)[0], expected)
