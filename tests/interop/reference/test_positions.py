"""Rotations preserve lengths and depend on distances only; sinusoids match the paper."""

import math

import pytest
import torch

from jaxllm.interop.reference.positions import (
    apply_rope,
    compute_freqs_cis,
    frequencies,
    reshape_for_broadcast,
    sinusoids,
)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rotation_preserves_lengths_and_depends_on_distance():
    q, k = draw(1, 1, 2, 8).expand(1, 20, 2, 8), draw(1, 1, 1, 8).expand(1, 20, 1, 8)
    rotated, keys = apply_rope(q, k, compute_freqs_cis(8, 20, dtype=torch.float64))
    torch.testing.assert_close(rotated.norm(dim=-1), q.norm(dim=-1))
    scores = torch.einsum("tnh,sh->nts", rotated[0], keys[0, :, 0])
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal))
    assert not torch.allclose(scores[:, 0, 0], scores[:, 0, 7])


def test_adjacent_elements_form_a_pair():
    x = torch.zeros(1, 2, 1, 4)
    x[..., 0] = 1
    rotated, _ = apply_rope(x, x, compute_freqs_cis(4, 2))
    expected = torch.tensor([math.cos(1), math.sin(1), 0, 0])
    torch.testing.assert_close(rotated[0, 1, 0], expected)


def test_rotations_of_the_wrong_shape_are_errors():
    with pytest.raises(ValueError, match=r"rotations of shape \(3, 4\) do not fit pairs of shape"):
        reshape_for_broadcast(torch.ones(3, 4), torch.ones(1, 5, 2, 4))


def test_sinusoids_alternate_sine_and_cosine():
    waves = frequencies(6, 10000.0, torch.float64)
    found = sinusoids(torch.arange(4), waves)
    for p in range(4):
        for j in range(3):
            angle = p / 10000 ** (2 * j / 6)
            assert found[p, 2 * j].item() == pytest.approx(math.sin(angle))
            assert found[p, 2 * j + 1].item() == pytest.approx(math.cos(angle))
