"""AdamW in the midst of a run, as a run takes it along from one framework to the other."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWState:
    """All that the next update depends on, but for the weights and their gradients.

    `mu` and `nu` are by the names and in the shapes of the parameters: arrays, or what reads them.
    """

    step: int  # updates made
    mu: Mapping[str, Any]  # running means of the gradients; PyTorch's exp_avg
    nu: Mapping[str, Any]  # and of their squares; exp_avg_sq
    learning_rate: float  # of the next update, or in PyTorch's files perhaps of the last one
    b1: float
    b2: float
    eps: float
    weight_decay: Mapping[str, float]  # of each parameter
