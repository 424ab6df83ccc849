"""AdamW (Loshchilov and Hutter, 2019) with clipping and a schedule."""

import dataclasses
from typing import ClassVar, Literal

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.models import Model
from jaxllm.params import Params, map_parameters

from .schedule import Decay, Phase, join_phases, multi_step, warmup_decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of a run with a schedule of its own."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    stop: int  # the first step that is no longer part of it; it starts where the one before stops
    learning_rate: float  # at its peak
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay: Decay = "cosine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW's settings. Only kernels and embeddings decay, not norms and biases, unless told."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    learning_rate: float = 3e-4  # at its peak
    final_learning_rate: float = 0.0
    final_div_factor: float | None = None  # the final rate is the peak divided by this instead
    warmup_steps: int = 0
    decay: Decay | Literal["multi_step"] = "cosine"
    milestones: tuple[float, ...] = (0.8, 0.9)  # shares of a multi_step run ...
    factors: tuple[float, ...] = (0.316, 0.1)  # ... from which the peak is multiplied by these
    phases: tuple[PhaseConfig, ...] = ()  # in place of all the above
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_all: bool = False  # norms and biases too, as PyTorch's only group does
    clip_norm: float = 1.0  # of all gradients together

    def __post_init__(self) -> None:
        positive = {"learning_rate", "eps", "clip_norm"}
        for name in ("b1", "b2", "weight_decay", "warmup_steps", "final_learning_rate", *positive):
            value = getattr(self, name)
            if value < 0 or (name in positive and value == 0):
                raise ValueError(f"optimizer.{name}={value} is not positive")
        if self.final_div_factor is not None and self.final_div_factor < 1:
            raise ValueError(f"optimizer.final_div_factor={self.final_div_factor} is less than 1")
        if self.final_div_factor is not None and self.final_learning_rate:
            raise ValueError("give either optimizer.final_learning_rate or final_div_factor")
        for name in ("b1", "b2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} is not less than 1")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.phases:
        starts = [0, *(phase.stop for phase in config.phases)]
        return join_phases(
            [
                Phase(start, phase.stop, _of_phase(phase, phase.stop - start))
                for start, phase in zip(starts, config.phases, strict=False)
            ]
        )
    if config.decay == "multi_step":
        return multi_step(peak, warmup, steps, config.milestones, config.factors)
    factor = config.final_div_factor
    final = config.final_learning_rate if factor is None else peak / factor
    return warmup_decay(peak, final, warmup, steps, config.decay)


def _of_phase(phase: PhaseConfig, steps: int) -> optax.Schedule:
    return warmup_decay(
        phase.learning_rate, phase.final_learning_rate, phase.warmup_steps, steps, phase.decay
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, model: Model
) -> optax.GradientTransformation:
    """The update rule for the parameters of `model`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=map_parameters(model, lambda name, _: is_decayed(config, name)),
        ),
    )


def is_decayed(config: OptimizerConfig, name: str) -> bool:
    """Whether weight decay is for the parameter of this name."""
    # PyTorch's rule is two or more dimensions. Here it is the name: stacked layers give the scale
    # of a norm a second dimension, and the bias of a head has N and H.
    return config.decay_all or name.endswith((".kernel", ".embedding"))


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Params, placed: Params, mesh: Mesh
) -> optax.OptState:
    """Where the optimizer's state lives: moments with their parameters, counts everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        placed,
        transform_non_params=lambda _: everywhere,
    )
