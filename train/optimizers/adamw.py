"""AdamW (Loshchilov and Hutter, 2019) with gradient clipping and a learning-rate schedule."""

import dataclasses
from typing import ClassVar, Literal

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.config.checks import check_fields
from jaxllm.models import Model
from jaxllm.params import Params, map_parameters

from .schedule import Decay, Phase, join_phases, multi_step, warmup_decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of a run, with its own warm-up and decay; phases follow each other."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    stop: int  # end step (exclusive); a phase starts where the previous one stops
    learning_rate: float  # peak
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay: Decay = "cosine"

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.phases: ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule. Weight decay applies to kernels and embeddings, or to everything."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    learning_rate: float = 3e-4  # peak
    final_learning_rate: float = 0.0
    final_div_factor: float | None = None  # alternative: final learning rate = peak / this factor
    warmup_steps: int = 0
    decay: Literal[Decay, "multi_step"] = "cosine"
    # For decay="multi_step": the fractions of the run at which the rate changes.
    milestones: tuple[float, ...] = (0.8, 0.9)
    factors: tuple[float, ...] = (0.316, 0.1)  # rate / peak after each milestone
    phases: tuple[PhaseConfig, ...] = ()  # replaces all the fields above
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_all: bool = False  # also norms and biases, like PyTorch with a single parameter group
    clip_norm: float = 1.0  # maximum global gradient norm

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")
        positive = {"learning_rate", "eps", "clip_norm"}
        for name in ("b1", "b2", "weight_decay", "warmup_steps", "final_learning_rate", *positive):
            value = getattr(self, name)
            if value < 0 or (name in positive and value == 0):
                least = "greater than 0" if name in positive else "0 or more"
                raise ValueError(f"optimizer.{name}={value} must be {least}")
        if self.final_div_factor is not None and self.final_div_factor < 1:
            raise ValueError(f"optimizer.final_div_factor={self.final_div_factor} is less than 1")
        if self.final_div_factor is not None and self.final_learning_rate:
            raise ValueError(
                "give either optimizer.final_learning_rate or optimizer.final_div_factor, not both"
            )
        for name in ("b1", "b2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} is not less than 1")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
        config: the schedule, which is `config.phases` if there are any.
        steps: the length of the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.phases:
        starts = [0, *(phase.stop for phase in config.phases)]
        return join_phases(
            [
                Phase(start, phase.stop, _phase_schedule(phase, phase.stop - start))
                for start, phase in zip(starts, config.phases, strict=False)
            ]
        )
    if config.decay == "multi_step":
        return multi_step(peak, warmup, steps, config.milestones, config.factors)
    factor = config.final_div_factor
    final = config.final_learning_rate if factor is None else peak / factor
    return warmup_decay(peak, final, warmup, steps, config.decay)


def _phase_schedule(phase: PhaseConfig, steps: int) -> optax.Schedule:
    return warmup_decay(
        phase.learning_rate, phase.final_learning_rate, phase.warmup_steps, steps, phase.decay
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, model: Model
) -> optax.GradientTransformation:
    """Returns the Optax optimizer for `model`: clipping by global norm, then AdamW."""
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
    """Whether weight decay applies to the parameter with this name."""
    # Decided by name. The usual rule in PyTorch, two or more dimensions, does not work here: the
    # scale of a norm has a second dimension if layers are stacked, and a head's bias has N and H.
    return config.decay_all or name.endswith((".kernel", ".embedding"))


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Params, placed: Params, mesh: Mesh
) -> optax.OptState:
    """Returns the shardings of the optimizer state: moments as their parameters, rest replicated.

    Args:
        optimizer: from `make_optimizer`.
        params: the parameters; may be abstract.
        placed: the sharding of each parameter.
        mesh: the mesh of these shardings.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        placed,
        transform_non_params=lambda _: replicated,
    )
