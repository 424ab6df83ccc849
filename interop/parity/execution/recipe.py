"""How both sides are trained when their training is compared."""

import dataclasses
from typing import Any

import jax
import optax

from jaxllm.interop.parity.alignment.parameter_names import DECAYED
from jaxllm.params import map_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW (Loshchilov and Hutter, 2019) after clipping; the learning rate falls linearly.

    Kernels and embeddings decay, norms and biases do not. The rate changes with every step, so
    that a schedule which is a step ahead or behind shows.
    """

    steps: int = 20
    learning_rate: float = 1e-3  # of the first step
    final_learning_rate: float = 1e-4  # that it would reach after the last
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # of all gradients together

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is less than 1")

    def rate(self, step: Any) -> Any:
        """The learning rate of a step, from 0."""
        left = 1 - step / self.steps
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left

    def optimizer(self, model: Any) -> optax.GradientTransformation:
        """The recipe in optax, for the parameters of `model`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                self.rate,
                b1=self.b1,
                b2=self.b2,
                eps=self.eps,
                weight_decay=self.weight_decay,
                mask=map_parameters(model, lambda name, _: name.endswith(DECAYED)),
            ),
        )


@dataclasses.dataclass(frozen=True)
class Training:
    """What training went through: of every step the loss, of the first one all the rest."""

    losses: tuple[float, ...]
    norm: float  # of all gradients together, before they are clipped
    # Of every parameter its gradient, m, v and update; of the reference's its value before as well.
    first: dict[str, dict[str, Any]]


def as_tuple(losses: list[Any]) -> tuple[float, ...]:
    """The losses once all of them are computed."""
    return tuple(float(loss) for loss in jax.device_get(losses))
