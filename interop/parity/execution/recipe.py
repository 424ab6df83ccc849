"""The training recipe of both sides, and the record of a training run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxllm.interop.parity.alignment.parameter_names import is_decayed
from jaxllm.interop.parity.numerics.precision import FLOAT32
from jaxllm.params import map_parameters

# From the gradient to its update: both moments and their corrections, root, eps, quotient, decay,
# learning rate. Constants are rounded, too.
ROUNDED_OPERATIONS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW (Loshchilov and Hutter, 2019) with gradient clipping and a linear schedule.

    Kernels and embeddings decay; norms and biases do not. The learning rate changes with every
    step, which exposes a schedule that is a step ahead or behind.
    """

    steps: int = 20
    learning_rate: float = 1e-3  # of the first step
    final_learning_rate: float = 1e-4  # of the step after the last one
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # global norm of all gradients

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is less than 1")

    @property
    def rounding(self) -> float:
        """The relative error of a first update by the arithmetic of AdamW itself, in float32.

        Both bias corrections are `1 - b` of a rounded b; the root halves that of the second moment.
        """
        first, second = (abs(b - float(np.float32(b))) / (1 - b) for b in (self.b1, self.b2))
        return first + second / 2 + ROUNDED_OPERATIONS * FLOAT32.unit_roundoff

    def rate(self, step: Any) -> Any:
        """Returns the learning rate of a step; the first step is 0."""
        left = 1 - step / self.steps
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left

    def optimizer(self, model: Any) -> optax.GradientTransformation:
        """Builds the recipe's optimizer in optax, for the parameters of `model`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                self.rate,
                b1=self.b1,
                b2=self.b2,
                eps=self.eps,
                weight_decay=self.weight_decay,
                mask=map_parameters(model, lambda name, _: is_decayed(model, name)),
            ),
        )


@dataclasses.dataclass(frozen=True)
class TrainingRecord:
    """A training run: the losses of all steps, and the arrays of the first step.

    Attributes:
        losses: the loss of every step.
        norm: global norm of the first step's gradients, before clipping.
        first: arrays of the first step by kind and parameter name. Kinds are `gradient`, `m`, `v`
            and `update` and, for the reference, `parameter`: the values before the step.
    """

    losses: tuple[float, ...]
    norm: float
    first: Mapping[str, Mapping[str, Any]]


def as_tuple(losses: list[Any]) -> tuple[float, ...]:
    """Copies losses from the device once all of them are computed."""
    return tuple(float(loss) for loss in jax.device_get(losses))
