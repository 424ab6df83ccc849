"""The state of AdamW in mid-training, in the form that moves between PyTorch and JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWState:
    """Everything that the next update depends on, except the weights and their gradients.

    `mu` and `nu` map parameter names to arrays of the parameters' shapes, or to objects that read
    such arrays.
    """

    step: int  # updates made so far
    mu: Mapping[str, Any]  # running means of the gradients; PyTorch's exp_avg
    nu: Mapping[str, Any]  # running means of their squares; PyTorch's exp_avg_sq
    learning_rate: float  # of the next update; a PyTorch file may hold that of the last one
    b1: float
    b2: float
    eps: float
    weight_decay: Mapping[str, float]  # by parameter name
