"""Root-mean-square norm (Zhang and Sennrich, 2019) of tlama and llm."""

import torch
from torch import Tensor, nn

from .precision import at_least_float32


def rmsnorm(x: Tensor, eps: float) -> Tensor:
    """Returns `x / rms(x)` over the last dimension, without a scale, in the dtype of `x`."""
    h = at_least_float32(x)
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm that casts back to the input dtype before scaling: (..., D) to (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x / rms(x) * weight`."""
        return rmsnorm(x, self.eps) * self.weight
