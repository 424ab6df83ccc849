"""Settings of sampling are checked, and filter logits of any number of rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.generation import Sampling
from jaxllm.generation.scores.settings import filter_logits

RNG = np.random.default_rng(0)


def test_logits_are_divided_by_the_temperature_and_filtered():
    """`scores/test_processors.py` compares the numbers with transformers'."""
    logits = jnp.asarray(RNG.standard_normal((5, 30)), jnp.float32)
    found = np.asarray(filter_logits(Sampling(temperature=0.5, top_k=3), logits))
    for row, given in zip(found, np.asarray(logits), strict=True):
        best = np.argsort(-given)[:3]
        assert set(np.flatnonzero(np.isfinite(row))) == set(best)
        np.testing.assert_allclose(row[best], given[best] / 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be finite and at least 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0 is less than 1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p=0.0 is not in \(0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be finite and above 0"),
        ({"top_k": 5}, "top_k need a temperature above 0"),
        ({"min_p": 0.1, "top_p": 0.5}, "top_p and min_p need a temperature above 0"),
        ({"temperature": 1.0, "min_p": 1.5}, r"min_p=1.5 is not in \[0, 1\)"),
        ({"temperature": 1.0, "typical_p": 0.0}, r"typical_p=0.0 is not in \(0, 1\]"),
        ({"presence_penalty": float("nan")}, "presence_penalty=nan must be finite"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
