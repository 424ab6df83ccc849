"""Llama 4: temperature on layers without RoPE, QK norm after RoPE on the others."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import TINY, random_of, relative_l2

from jaxllm.config import LayerKind, TemperatureConfig, with_fields
from jaxllm.interop.reference.positions import apply_rope, compute_freqs_cis
from jaxllm.layers.attention.temperature import temperature_growth

CONFIG = with_fields(
    TINY,
    {
        "rope.layout": "interleaved",
        "attention.qk_norm": "after_rope",
        "norms.eps": 1e-3,  # large enough to show where it is added
        "attention.temperature": TemperatureConfig(scale=0.3, floor_scale=4.0),
    },
    num_layers=2,
    pattern=(LayerKind(), LayerKind(rope="none")),
    scan_layers=False,
)
POSITIONS = np.arange(30)[None]


def test_temperature_growth_equals_the_formula():
    found = temperature_growth(TemperatureConfig(scale=0.3, floor_scale=4.0), POSITIONS)
    expected = [[1 + 0.3 * math.log(1 + (p + 1) // 4) for p in range(30)]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    released = temperature_growth(TemperatureConfig(), jnp.array([[0, 8190, 8191, 16383]]))
    np.testing.assert_allclose(
        released, [[1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)]], rtol=1e-6
    )


@pytest.fixture(scope="module")
def layers():
    """An attention layer with RoPE and one without."""
    model = random_of(CONFIG)
    return model.layers["0"].attn, model.layers["1"].attn


def draw() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 30, 4, 16)).astype(np.float32)


def test_heads_are_normalized_without_scale_after_rope(layers):
    rotating, _ = layers
    assert rotating.q_norm is None
    x = torch.tensor(draw())
    rotated, _ = apply_rope(x, x, compute_freqs_cis(16, 30))
    expected = rotated / torch.sqrt(rotated.pow(2).mean(-1, keepdim=True) + 1e-3)
    assert relative_l2(rotating.normalize_and_rotate(draw(), None, POSITIONS), expected) < 1e-6
    assert relative_l2(rotating.scale_by_temperature(draw(), POSITIONS), draw()) == 0


def test_layers_without_rope_have_temperature_instead(layers):
    _, standing = layers
    assert relative_l2(standing.normalize_and_rotate(draw(), None, POSITIONS), draw()) == 0
    growth = [1 + 0.3 * math.log(1 + (p + 1) // 4) for p in range(30)]
    expected = draw() * np.array(growth, np.float32)[None, :, None, None]
    assert relative_l2(standing.scale_by_temperature(draw(), POSITIONS), expected) < 1e-6


def test_queries_keep_their_dtype(layers):
    for layer in layers:
        x = jnp.asarray(draw(), jnp.bfloat16)
        assert (
            layer.scale_by_temperature(
                layer.normalize_and_rotate(x, None, POSITIONS), POSITIONS
            ).dtype
            == jnp.bfloat16
        )


def test_non_positive_floor_scale_is_rejected():
    with pytest.raises(ValueError, match="floor_scale=0"):
        TemperatureConfig(floor_scale=0)
