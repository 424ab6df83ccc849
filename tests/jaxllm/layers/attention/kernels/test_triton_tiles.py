"""The scores of one tile, and the order in which tiles are added up."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import relative_l2

from jaxllm.layers.attention.kernels.triton_tiles import MASKED, Rules, over_tiles, scores
from jaxllm.layers.attention.mask import MaskSpec


def test_scores_are_to_the_base_2_capped_and_masked():
    q, k = (np.random.default_rng(i).standard_normal((16, 16), np.float32) for i in range(2))
    at, ids = jnp.arange(16) % 8, jnp.arange(16) // 8
    rules = Rules(MaskSpec(window=3), scale=0.5, softcap=2.0)
    found, slope = scores(rules, jnp.asarray(q), jnp.asarray(k), ((at, ids), (at, ids)))
    expected = 2 * np.tanh(0.5 * q @ k.T / 2) / np.log(2)
    behind = np.arange(16)[:, None] - np.arange(16)
    seen = (behind >= 0) & (behind < 3) & (np.arange(16)[:, None] // 8 == np.arange(16) // 8)
    assert relative_l2(found[seen], expected[seen]) < 1e-6
    assert np.all(np.asarray(found)[~seen] == np.float32(MASKED))
    assert relative_l2(slope, 1 - np.tanh(0.5 * q @ k.T / 2) ** 2) < 1e-6
    unmasked, none = scores(rules._replace(softcap=None), jnp.asarray(q), jnp.asarray(k), None)
    assert relative_l2(unmasked, 0.5 * q @ k.T / np.log(2)) < 1e-6
    assert none is None


def test_only_the_tiles_at_the_edges_are_masked():
    def add(is_masked):
        return lambda i, sums: sums.at[i].add(1 + 10 * is_masked)

    run = jax.jit(lambda ranges: over_tiles(ranges, add, jnp.zeros(8, int)))
    assert run(jnp.array([1, 3, 6, 7])).tolist() == [0, 11, 11, 1, 1, 1, 11, 0]
