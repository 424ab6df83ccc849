"""Positions as rotations of queries and keys (Su et al., 2021) and as sinusoids."""

import torch
from torch import Tensor

from .precision import at_least_float32


def frequencies(dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """`theta ** (-2j / dim)` for each of the `dim / 2` pairs j."""
    return 1 / theta ** (torch.arange(0, dim, 2, dtype=dtype) / dim)


def rotations(angles: Tensor) -> Tensor:
    """`exp(i angle)`: complex64 of float32, complex128 of float64."""
    return torch.polar(torch.ones_like(angles), angles)


def compute_freqs_cis(
    dim: int, end: int, theta: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The rotation of each pair at each of `end` positions: (end, dim / 2), complex."""
    return rotations(torch.outer(torch.arange(end, dtype=dtype), frequencies(dim, theta, dtype)))


def reshape_for_broadcast(freqs_cis: Tensor, x: Tensor) -> Tensor:
    """(T, H/2) as (1, T, 1, H/2). Raises ValueError if `x`, (B, T, N, H/2), has other sizes."""
    if freqs_cis.shape != (x.shape[1], x.shape[-1]):
        raise ValueError(
            f"rotations of shape {tuple(freqs_cis.shape)} for pairs of shape {tuple(x.shape)}"
        )
    return freqs_cis[None, :, None, :]


def apply_rope(xq_BTNH: Tensor, xk_BTKH: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with neighbouring elements (2j, 2j+1) rotated as one complex number."""
    return _rotate(xq_BTNH, freqs_cis), _rotate(xk_BTKH, freqs_cis)


def _rotate(x: Tensor, freqs_cis: Tensor) -> Tensor:
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)).contiguous())
    rotated = pairs * reshape_for_broadcast(freqs_cis, pairs)
    return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


def sinusoids(positions: Tensor, frequencies: Tensor) -> Tensor:
    """The sine of `p f` at element 2j, its cosine at 2j+1 (Vaswani et al., 2017): TD.

    For frequencies `f` of `10000^(-2j/dim)`, which have the dtype of the result.
    """
    angles = torch.outer(positions.to(frequencies.dtype), frequencies)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
