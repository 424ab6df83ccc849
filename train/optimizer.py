"""AdamW (Loshchilov and Hutter, 2019) with clipping, warm-up and cosine decay."""

import dataclasses
from typing import ClassVar

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.models.decoder import Decoder
from jaxllm.params import Params, tree_of

from .schedule import warmup_cosine


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW's settings. Only kernels and embeddings decay, not norms and biases."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    learning_rate: float = 3e-4  # at its peak
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # of all gradients together

    def __post_init__(self) -> None:
        positive = {"learning_rate", "eps", "clip_norm"}
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (name in positive and value == 0):
                raise ValueError(f"optimizer.{name}={value} is not positive")
        for name in ("b1", "b2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} is not less than 1")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step."""
    return warmup_cosine(
        config.learning_rate, config.final_learning_rate, config.warmup_steps, steps
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, model: Decoder
) -> optax.GradientTransformation:
    """The update rule for the parameters of `model`."""
    # PyTorch's rule is two or more dimensions. Here it is the name: stacked layers give the scale
    # of a norm a second dimension, and the bias of a head has N and H.
    decays = tree_of(model, lambda name, _: name.endswith((".kernel", ".embedding")))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )


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
