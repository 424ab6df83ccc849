"""Rotary positions (Su et al., 2021) and sinusoidal positions (Vaswani et al., 2017)."""

import torch
from torch import Tensor

from .precision import at_least_float32


def frequencies(dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """Returns `theta ** (-2j / dim)` for each of the `dim / 2` pairs j."""
    return 1 / theta ** (torch.arange(0, dim, 2, dtype=dtype) / dim)


def rotations(angles: Tensor) -> Tensor:
    """Returns `exp(i angle)`: complex64 for float32, complex128 for float64."""
    return torch.polar(torch.ones_like(angles), angles)


def compute_freqs_cis(
    dim: int, end: int, theta: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns the rotation of each pair at positions below `end`: (end, dim / 2), complex."""
    return rotations(torch.outer(torch.arange(end, dtype=dtype), frequencies(dim, theta, dtype)))


def reshape_for_broadcast(freqs_cis: Tensor, x: Tensor) -> Tensor:
    """Reshapes (T, H/2) to (1, T, 1, H/2). Raises ValueError unless `x` is (B, T, N, H/2)."""
    if freqs_cis.shape != (x.shape[1], x.shape[-1]):
        raise ValueError(
            f"rotations of shape {tuple(freqs_cis.shape)} do not fit pairs of shape "
            f"{tuple(x.shape)}"
        )
    return freqs_cis[None, :, None, :]


def apply_rope(xq_BTNH: Tensor, xk_BTKH: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates adjacent elements (2j, 2j+1) of queries and keys as complex numbers."""
    return _rotate(xq_BTNH, freqs_cis), _rotate(xk_BTKH, freqs_cis)


def _rotate(x: Tensor, freqs_cis: Tensor) -> Tensor:
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)).contiguous())
    rotated = pairs * reshape_for_broadcast(freqs_cis, pairs)
    return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


def sinusoids(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Returns sin(p f_j) at element 2j and cos(p f_j) at 2j+1 (Vaswani et al., 2017): TD.

    `frequencies` are f_j = 10000^(-2j/dim); the result has their dtype.
    """
    angles = torch.outer(positions.to(frequencies.dtype), frequencies)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
