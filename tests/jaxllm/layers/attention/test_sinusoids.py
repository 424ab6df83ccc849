"""Sinusoids equal the formula of the paper; their frequencies equal PyTorch's bit for bit."""

import math

import numpy as np
import pytest
import torch
from tiny import relative_l2
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding

from jaxllm.layers.attention.sinusoids import sinusoids, wave_frequencies


@pytest.mark.parametrize("waves", ["power", "exp"])
def test_sinusoids_equal_the_formula(waves):
    """PE(p, 2j) = sin(p / 10000 ** (2j / D)), PE(p, 2j + 1) its cosine."""
    positions = np.array([[0, 1, 511], [3, 70, 8]])
    found = sinusoids(positions, 6, waves)
    for j in range(3):
        angles = positions / 10000 ** (2 * j / 6)
        np.testing.assert_allclose(found[..., 2 * j], np.sin(angles), atol=3e-5)
        np.testing.assert_allclose(found[..., 2 * j + 1], np.cos(angles), atol=3e-5)


def test_halves_equal_the_formula_in_float64():
    """Marian computes its angles in float64: in float32 they are off by 3e-5 at position 511."""
    positions = np.array([[0, 1, 511], [3, 1023, 4095]])
    found = sinusoids(positions, 48, "halves")
    angles = positions[..., None] / 10000 ** (2 * np.arange(24) / 48)
    np.testing.assert_allclose(
        found, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=2e-7
    )


def test_tensor2tensor_equals_transformers():
    weights = M2M100SinusoidalPositionalEmbedding.get_embedding(520, 48)
    found = sinusoids(np.arange(520)[None], 48, "tensor2tensor")[0]
    np.testing.assert_allclose(found, weights, atol=4e-5)  # two units in the last place of 519
    assert relative_l2(found, weights) < 1e-5


def test_frequencies_equal_pytorch_bit_for_bit():
    for dim in (6, 48, 512):
        pairs = torch.arange(0, dim, 2, dtype=torch.float32)
        power = 1 / 10000.0 ** (pairs / dim)
        np.testing.assert_array_max_ulp(wave_frequencies(dim, "power"), power.numpy(), 1)
        exp = torch.exp(pairs * (-math.log(10000.0) / dim))
        np.testing.assert_array_max_ulp(wave_frequencies(dim, "exp"), exp.numpy(), 1)
    assert (wave_frequencies(48, "power") != wave_frequencies(48, "exp")).any()
