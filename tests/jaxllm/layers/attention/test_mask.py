"""Masks equal their definitions: causal, window, chunk and segment."""

import chex
import numpy as np
import pytest
from tiny import TINY

from jaxllm.config import LayerKind
from jaxllm.layers.attention.mask import MaskSpec, same_segment

T = 12
POSITIONS = np.arange(T)[None]
SPECS = {
    "causal": (MaskSpec(), lambda q, k: k <= q),
    "both ways": (MaskSpec(causal=False), lambda q, k: True),
    "window": (MaskSpec(window=3), lambda q, k: q - 3 < k <= q),
    "chunk": (MaskSpec(chunk=5), lambda q, k: k <= q and k // 5 == q // 5),
}


@pytest.mark.parametrize("name", SPECS)
def test_mask_equals_its_definition(name):
    spec, is_seen = SPECS[name]
    expected = [[[is_seen(q, k) for k in range(T)] for q in range(T)]]
    found = np.broadcast_to(spec.mask(POSITIONS, POSITIONS), (1, T, T))
    chex.assert_trees_all_equal(found, np.array(expected))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (3, 8), (8, 12)])
def test_key_range_covers_all_keys_that_a_block_sees(name, start, stop):
    spec, _ = SPECS[name]
    seen = np.broadcast_to(spec.mask(POSITIONS, POSITIONS), (1, T, T))[0, start:stop].any(axis=0)
    keys = spec.key_range(start, stop, T)
    assert not seen[: keys.start].any()
    assert not seen[keys.stop :].any()
    assert keys == slice(0, T) or keys.stop - keys.start < T


def test_mask_spec_follows_the_layer_kind():
    assert MaskSpec.from_config(TINY, LayerKind()) == MaskSpec()
    assert [MaskSpec(window=7).lookback, MaskSpec(chunk=5).lookback, MaskSpec().lookback] == [
        7,
        5,
        None,
    ]


def test_same_segment_compares_ids():
    found = same_segment(np.array([[1, 2]]), np.array([[1, 1, 2]]))
    chex.assert_trees_all_equal(np.asarray(found), np.array([[[1, 1, 0], [0, 0, 1]]], bool))
