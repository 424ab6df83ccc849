"""Sampling filters tokens as transformers does and draws from the filtered distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.generation import Sampling
from jaxllm.generation.sampling import penalize_repetition

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 0.9, "top_p": 0.6},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 500, "top_p": 1.0},
    ],
)
def test_filtered_logits_match_transformers(settings):
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = (3 * RNG.standard_normal((6, 96))).astype(np.float32)
    expected = TemperatureLogitsWarper(settings["temperature"])(None, torch.tensor(logits))
    if "top_k" in settings:
        expected = TopKLogitsWarper(settings["top_k"])(None, expected)
    if settings.get("top_p", 1.0) < 1:
        expected = TopPLogitsWarper(settings["top_p"])(None, expected)
    ours = np.asarray(Sampling(**settings).filter_logits(jnp.asarray(logits)))
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(expected.numpy()))
    kept = np.isfinite(ours)
    np.testing.assert_allclose(ours[kept], expected.numpy()[kept], rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.6, 1.4])
def test_penalized_scores_match_transformers(penalty):
    """Covers positive and negative scores; a token that occurs twice is penalized once."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = (3 * RNG.standard_normal((4, 40))).astype(np.float32)
    tokens = RNG.integers(0, 40, (4, 9))
    tokens[:, 3] = tokens[:, 5]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(tokens), torch.tensor(scores))
    seen = np.zeros((4, 40), bool)
    seen[np.arange(4)[:, None], tokens] = True
    assert 0 < (scores[seen] > 0).mean() < 1
    np.testing.assert_array_equal(penalize_repetition(scores, seen, np.float32(penalty)), expected)


def test_draws_follow_the_filtered_distribution():
    logits = jnp.asarray(RNG.standard_normal((1, 8)), jnp.float32)
    sampling = Sampling(temperature=0.8, top_k=5)
    keys = jax.random.split(jax.random.key(0), 20000)
    draws = np.asarray(jax.vmap(lambda key: sampling(logits, key[None])[0])(keys))
    expected = np.asarray(jax.nn.softmax(sampling.filter_logits(logits)))[0]
    measured = np.bincount(draws, minlength=8) / len(draws)
    # Five standard deviations of an observed frequency.
    np.testing.assert_allclose(measured, expected, atol=5 * 0.5 / len(draws) ** 0.5)
    assert set(draws.tolist()) <= set(np.flatnonzero(expected).tolist())


def test_temperature_zero_is_greedy():
    logits = jnp.asarray(RNG.standard_normal((5, 30)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    np.testing.assert_array_equal(Sampling()(logits, keys), logits.argmax(-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be finite and at least 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0 is less than 1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p=0.0 is not in \(0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be finite and above 0"),
        ({"top_k": 5}, "need a temperature above 0"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
