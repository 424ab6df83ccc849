"""Recurrent caches: their state, and rows that do not continue it, which become NaN."""

import jax
import numpy as np
from tiny import TINY

from jaxllm.config import DeltaConfig, LayerKind, with_fields
from jaxllm.layers.attention.recurrent_cache import DeltaCache

DELTA = DeltaConfig(num_heads=4, num_key_heads=2, key_dim=3, value_dim=5, conv_size=3)
CONFIG = with_fields(
    TINY, {"attention.delta": DELTA, "pattern": (LayerKind(attention="delta"), LayerKind())}
)
SHAPES = ((2, 6, 2, 3), (2, 6, 2, 3), (2, 6, 4, 5))


def test_it_keeps_the_last_tokens_of_each_row():
    """Padding comes after them; a row with fewer than the convolution spans keeps older ones."""
    rng = np.random.default_rng(0)
    cache, channels = DeltaCache.empty(CONFIG, 2), [rng.random(shape) for shape in SHAPES]
    positions = np.array([[0, 1, 2, 3, -1, -1], [0, -1, -1, -1, -1, -1]])
    cache = cache.after(channels, cache.state_BNHW + 1, positions)
    assert cache.next_B.tolist() == [4, 1]
    for kept, given in zip(cache.before, channels, strict=True):
        np.testing.assert_allclose(kept[0], given[0, 2:4], rtol=1e-6)
        np.testing.assert_allclose(kept[1, 1], given[1, 0], rtol=1e-6)
        assert not kept[1, 0].any()


def test_only_the_next_position_continues_it():
    cache = DeltaCache.empty(CONFIG, 5)._replace(next_B=np.full(5, 3))
    positions = np.array([[3, 4, -1], [-1, -1, -1], [4, 5, 6], [-1, 3, 4], [3, 3, 4]])
    is_nan = np.isnan(cache.state_before(positions)).all(axis=(1, 2, 3))
    assert is_nan.tolist() == [False, False, True, True, True]


def test_a_cleared_one_is_that_of_no_tokens():
    cache = DeltaCache.empty(CONFIG, 1)
    used = jax.tree.map(lambda x: x + 1, cache)
    for one, other in zip(used.cleared(), cache, strict=True):
        np.testing.assert_array_equal(one, other)
