"""Cost of a run, estimated before it starts: parameters, tokens, FLOPs and memory."""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from jaxllm.config import Config, DecoderConfig, EncoderDecoderConfig
from jaxllm.errors import UserError
from jaxllm.models import build_abstract
from jaxllm.params import count_parameters, named_parameters
from jaxllm.sharding import MESH_AXES

from .config import TrainConfig
from .data.tasks import TaskConfig
from .finetuning.start import model_to_train
from .preference.reference import work_per_row
from .speed.model_flops import active_size
from .step import make_steps

TOKENS_PER_PARAMETER = 20  # compute-optimal (Hoffmann et al., 2022, table 3)


class RunCost(NamedTuple):
    """The cost of a run, and the compute-optimal model for the same budget.

    Compute is 6 FLOPs for each pair of a parameter and a token that it processes: source tokens
    count for the encoder's parameters, target tokens for the decoder's, and image patches for
    those of the vision encoder. Of an MoE layer's experts, only the `top_k` that a token goes to
    count. The optimum is known for text only, not for vectors.
    """

    parameters: int
    tokens: int  # over all steps
    operations: float  # floating-point operations over all steps
    optimal_parameters: float | None  # size of the compute-optimal model for these operations
    optimal_tokens: float | None  # tokens to train the compute-optimal model on
    bytes_per_device: int  # parameters, gradients and optimizer state on the fullest device

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens per parameter; about 20 is compute-optimal for text."""
        return self.tokens / self.parameters

    def __str__(self) -> str:
        optimal_ratio = optimum = ""
        if self.optimal_parameters is not None:
            optimal_ratio = f" (compute-optimal: {TOKENS_PER_PARAMETER})"
            optimum = (
                f"compute-optimal   {self.optimal_parameters:.3g} parameters on "
                f"{self.optimal_tokens:.3g} tokens, for the same compute\n"
            )
        return (
            f"parameters        {self.parameters:,}\n"
            f"tokens            {self.tokens:,}, {self.tokens_per_parameter:.3g} per parameter"
            f"{optimal_ratio}\n"
            f"compute           {self.operations:.3g} FLOPs\n"
            f"{optimum}"
            f"per device        {self.bytes_per_device / 2**20:,.1f} MiB for parameters, gradients "
            "and optimizer state"
        )


def estimate_cost(config: TrainConfig) -> RunCost:
    """Estimates the cost of a run.

    Args:
        config: the run. It must have `model`, since `init_from` does not give the sizes.

    Raises:
        UserError: `config.model` is None, or a mesh axis is -1.
    """
    check_has_model(config)
    assert config.model is not None, "just checked"
    parameters = count_parameters(build_abstract(config.model))
    examples = config.steps * config.batch_size
    sequences, passes = work_per_row(config)
    tokens = sequences * examples * config.seq_len
    operations = 6.0 * passes * examples * _parameter_uses(config, config.model)
    is_text = isinstance(config.model, DecoderConfig | EncoderDecoderConfig)
    optimum = optimal_parameters(operations) if is_text else None
    mesh = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    if free := [axis for axis, size in mesh.items() if size == -1]:
        raise UserError(f"mesh.{free[0]}=-1 depends on the number of devices; give its size")
    return RunCost(
        parameters,
        tokens,
        operations,
        optimum,
        None if optimum is None else TOKENS_PER_PARAMETER * optimum,
        bytes_per_device(config, mesh),
    )


def check_has_model(config: TrainConfig) -> None:
    """Raises UserError if a run starts from a checkpoint, so that its config has no sizes."""
    if config.model is None:
        raise UserError(
            f"init_from={config.init_from!r} does not give the model's sizes; to estimate the "
            "cost, set model in the config"
        )


def _parameter_uses(config: TrainConfig, model: Config) -> int:
    """Counts the pairs of a parameter and a token or patch that it processes, for one example."""
    named = named_parameters(build_abstract(model))
    sizes = {name: active_size(model, name, variable) for name, variable in named.items()}
    vision_size = sum(size for name, size in sizes.items() if name.startswith("vision."))
    vision = model.vision if isinstance(model, DecoderConfig) else None
    has_images = isinstance(config.data, TaskConfig)  # text has none
    patches = vision.num_patches if vision is not None and has_images else 0
    return (sum(sizes.values()) - vision_size) * config.seq_len + vision_size * patches


def optimal_parameters(operations: float) -> float:
    """Returns the compute-optimal size: N in `C = 6 N D` with `D = 20 N` (Hoffmann et al., 2022).

    Args:
        operations: the compute budget C, in floating-point operations.

    Raises:
        UserError: the budget is not positive and finite.
    """
    if not 0 < operations < math.inf:
        raise UserError(f"operations={operations} is not a positive finite number")
    return math.sqrt(operations / (6 * TOKENS_PER_PARAMETER))


def bytes_per_device(config: TrainConfig, mesh_shape: dict[str, int]) -> int:
    """Counts the bytes of parameters, gradients and optimizer state that each device holds.

    Those that LoRA leaves frozen and those of DPO's reference have no gradient and no state.
    Counts of steps are left out.

    Args:
        config: the run, with its model.
        mesh_shape: the sizes of the mesh axes.
    """
    mesh: Any = AbstractMesh(
        tuple(mesh_shape.values()), tuple(mesh_shape), (AxisType.Auto,) * len(mesh_shape)
    )
    steps = make_steps(config, model_to_train(config, None), mesh)
    state = steps.abstract_state
    trained = (state.params, state.params, state.optimizer)  # twice: its gradient
    held = (*trained, state.frozen, state.reference)
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(held)
        if x.shape
    )
