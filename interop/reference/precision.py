"""The precision of norms, softmax and rotations."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if that is what it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
