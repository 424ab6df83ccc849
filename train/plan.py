"""What a run will take, before it is started: parameters, tokens, arithmetic, memory."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from jaxllm.config import Config, DecoderConfig, EncoderDecoderConfig
from jaxllm.errors import UserError
from jaxllm.models import build_abstract
from jaxllm.params import count_parameters, dim_letters, named_parameters
from jaxllm.sharding import MESH_AXES, partition_spec

from .config import TrainConfig
from .data.tasks import TaskConfig

TOKENS_PER_PARAMETER = 20  # compute-optimal (Hoffmann et al., 2022, table 3)
BYTES_PER_PARAMETER = 16  # float32 parameter, gradient and two moments


class Plan(NamedTuple):
    """What a run takes. Arithmetic is 6 operations for each parameter and token that meets it.

    The tokens of a source meet the encoder's, those of its target the decoder's; the patches of
    an image meet those of its encoder. What is best is known of text alone, not of vectors.
    """

    parameters: int
    tokens: int  # of all steps
    operations: float
    optimal_parameters: float | None  # of the best model for so much arithmetic ...
    optimal_tokens: float | None  # ... and the tokens that it should be trained on
    bytes_per_device: int  # of parameters, gradients and moments on the fullest device

    @property
    def tokens_per_parameter(self) -> float:
        """Compute-optimal is about 20."""
        return self.tokens / self.parameters

    def __str__(self) -> str:
        optimum = best = ""
        if self.optimal_parameters is not None:
            optimum = f" ({TOKENS_PER_PARAMETER} are compute-optimal)"
            best = (
                f"best for as much  {self.optimal_parameters:.3g} parameters on "
                f"{self.optimal_tokens:.3g} tokens\n"
            )
        return (
            f"parameters        {self.parameters:,}\n"
            f"tokens            {self.tokens:,}, {self.tokens_per_parameter:.3g} per parameter"
            f"{optimum}\n"
            f"arithmetic        {self.operations:.3g} operations\n"
            f"{best}"
            f"on each device    {self.bytes_per_device / 2**20:,.1f} MiB of parameters, gradients "
            "and moments"
        )


def plan(config: TrainConfig) -> Plan:
    """What the run of a config takes. Its model must be in it, not in a checkpoint."""
    if config.model is None:
        raise UserError(f"init_from={config.init_from!r} has no sizes to plan with; give model")
    parameters = count_parameters(build_abstract(config.model))
    examples = config.steps * config.batch_size
    tokens = examples * config.seq_len
    operations = 6.0 * examples * _met(config, config.model)
    is_text = isinstance(config.model, DecoderConfig | EncoderDecoderConfig)
    best = optimal_parameters(operations) if is_text else None
    mesh = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    held = parameters_per_device(config.model, mesh)
    return Plan(
        parameters,
        tokens,
        operations,
        best,
        None if best is None else TOKENS_PER_PARAMETER * best,
        held * BYTES_PER_PARAMETER,
    )


def _met(config: TrainConfig, model: Config) -> int:
    """How often an example's tokens and patches meet a parameter."""
    named = named_parameters(build_abstract(model))
    sizes = {name: variable.get_value().size for name, variable in named.items()}
    of_vision = sum(size for name, size in sizes.items() if name.startswith("vision."))
    vision = model.vision if isinstance(model, DecoderConfig) else None
    has_images = isinstance(config.data, TaskConfig)  # text has none
    patches = vision.num_patches if vision is not None and has_images else 0
    return (sum(sizes.values()) - of_vision) * config.seq_len + of_vision * patches


def optimal_parameters(operations: float) -> float:
    """The compute-optimal size, N in `C = 6 N D` with `D = 20 N` (Hoffmann et al., 2022)."""
    if not 0 < operations < math.inf:
        raise UserError(f"operations={operations} is not a positive number")
    return math.sqrt(operations / (6 * TOKENS_PER_PARAMETER))


def parameters_per_device(config: Config, mesh_shape: dict[str, int]) -> int:
    """How many parameters each device of such a mesh holds."""
    mesh = AbstractMesh(
        tuple(mesh_shape.values()), tuple(mesh_shape), (AxisType.Auto,) * len(mesh_shape)
    )
    total = 0
    for variable in named_parameters(build_abstract(config)).values():
        shape = variable.get_value().shape
        placed = jax.sharding.NamedSharding(
            mesh, partition_spec(dim_letters(variable), shape, mesh_shape)
        )
        total += int(np.prod(placed.shard_shape(shape)))
    return total
