"""Cuts by bisection are those of a sort of the vocabulary."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.generation.scores.thresholds import keep_top_k, keep_top_p, keep_typical

RNG = np.random.default_rng(0)
# More tokens than a tile of `_mass`, and no multiple of it.
LOGITS = (3 * RNG.standard_normal((4, 5000))).astype(np.float32)
LOGITS[1, 100:] = -np.inf
LOGITS[2] *= 1e-6  # almost uniform
LOGITS[3, :10] = 0.0, -0.0, 1e-38, -1e-38, 1e-45, -1e-45, 3e38, -3e38, 5.0, -5.0


@pytest.mark.parametrize("k", [1, 7, 99, 4000, 5000, 9000])
def test_top_k_are_the_k_largest(k):
    found = np.isfinite(keep_top_k(jnp.asarray(LOGITS), jnp.full(4, k)))
    least = np.sort(LOGITS, axis=-1)[:, -min(k, 5000), None]
    np.testing.assert_array_equal(found, (least <= LOGITS) & np.isfinite(LOGITS))


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.5, 0.9, 0.999])
def test_top_p_are_the_fewest_that_reach_the_probability(p):
    found = np.isfinite(keep_top_p(jnp.asarray(LOGITS), jnp.full(4, p, jnp.float32)))
    probs = np.exp(LOGITS.astype(np.float64) - LOGITS.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    for row, kept in enumerate(found):
        order = np.argsort(-probs[row], kind="stable")
        count = 1 + int((np.cumsum(probs[row][order]) < p - 1e-12).sum())
        assert kept.sum() == pytest.approx(count, abs=max(1, 2e-4 * count))  # sums in float32
        assert kept[order[: kept.sum()]].all()


def test_typical_tokens_have_information_close_to_the_entropy():
    """The most likely token of an uneven distribution is not typical."""
    probs = np.array([[0.45, *[0.055] * 10]], np.float32)
    found = np.isfinite(keep_typical(jnp.log(probs), jnp.full(1, 0.2, jnp.float32)))
    assert not found[0, 0]
    assert found[0, 1:].all()  # equally typical
