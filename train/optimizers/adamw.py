"""AdamW (Loshchilov and Hutter, 2019) with gradient clipping; `schedule` has its learning rate."""

import dataclasses
from typing import ClassVar

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.config import ReduceDtype
from jaxllm.config.checks import check_not_negative, check_positive
from jaxllm.models import Model
from jaxllm.params import Params, map_parameters

from .schedule import ScheduleConfig, make_schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(ScheduleConfig):
    """AdamW and its schedule. Weight decay applies to kernels and embeddings, or to everything."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_all: bool = False  # also norms and biases, like PyTorch with a single parameter group
    clip_norm: float = 1.0  # maximum global gradient norm
    # In which devices sum the gradients of kernels; None: the model's numerics.reduce_dtype.
    reduce_dtype: ReduceDtype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "b1", "b2", "weight_decay", prefix="optimizer.")
        check_positive(self, "eps", "clip_norm", prefix="optimizer.")
        for name in ("b1", "b2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} is not less than 1")


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
