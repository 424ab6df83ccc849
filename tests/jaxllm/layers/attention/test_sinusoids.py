"""Sinusoids equal the formula of the paper; their frequencies equal PyTorch's bit for bit."""

import math

import numpy as np
import pytest
import torch

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


def test_frequencies_equal_pytorch_bit_for_bit():
    for dim in (6, 48, 512):
        pairs = torch.arange(0, dim, 2, dtype=torch.float32)
        power = 1 / 10000.0 ** (pairs / dim)
        np.testing.assert_array_max_ulp(wave_frequencies(dim, "power"), power.numpy(), 1)
        exp = torch.exp(pairs * (-math.log(10000.0) / dim))
        np.testing.assert_array_max_ulp(wave_frequencies(dim, "exp"), exp.numpy(), 1)
    assert (wave_frequencies(48, "power") != wave_frequencies(48, "exp")).any()
