"""The least that a step must move between devices, by mesh axes, for its sharding and dtypes."""

import math
from collections import Counter
from collections.abc import Mapping

from jaxllm.config import Config, StackConfig, TwoStackConfig
from jaxllm.models import build_abstract
from jaxllm.params import dim_letters, named_parameters
from jaxllm.sharding import DIMS, partition_spec
from jaxllm.train.config import TrainConfig

from .collectives import share

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GRADIENT_BYTES = 4  # gradients are reduced in float32


def minimum_bytes(
    config: TrainConfig, model: Config, mesh_shape: Mapping[str, int]
) -> dict[tuple[str, ...], float]:
    """Returns the least bytes that each device must receive in a step, by mesh axes.

    - Parameters that are split over axes of the batch: gathered for the forward and for the
      backward pass of each microbatch, in the dtype of activations. Tables that are only looked
      up are left out.
    - Gradients: reduced once per step, in float32.
    - Experts that are split: each token's row goes to its experts and back, and its gradient too.
    - The axis `tensor`: the residual stream is summed after attention and after the MLP of each
      layer, in the forward and in the backward pass.
    """
    sizes = {axis: size for axis, size in mesh_shape.items() if size > 1}
    width = _BYTES[config.dtype or main_stack(model).numerics.dtype]
    found: Counter[tuple[str, ...]] = Counter()
    named = named_parameters(build_abstract(model))
    looked_up = _only_looked_up(model)
    for name, variable in named.items():
        shape, letters = variable.get_value().shape, dim_letters(variable)
        spec = partition_spec(letters, shape, mesh_shape)
        split: dict[str, str] = {}  # the letter that each mesh axis splits
        for letter, part in zip(letters, spec, strict=True):
            split |= {axis: letter for axis in _names(part) if axis in sizes}
        batch = [axis for axis in DIMS["B"] if axis in sizes and split.get(axis) != "E"]
        gathered = tuple(axis for axis in sizes if axis in batch and axis in split)
        copied = tuple(axis for axis in sizes if axis in batch and axis not in split)
        part_size = math.prod(shape) / math.prod(sizes[axis] for axis in split)
        ways = math.prod(sizes[axis] for axis in gathered)
        if gathered:
            reads = 0 if name in looked_up else 2 * config.accumulate
            sums = 0 if name in looked_up else 1
            whole = part_size * ways * share("all-gather", ways)
            found[gathered] += whole * (reads * width + sums * GRADIENT_BYTES)
        if copied and name not in looked_up:
            among = math.prod(sizes[axis] for axis in copied)
            found[copied] += part_size * GRADIENT_BYTES * share("all-reduce", among)
    _add_activations(found, config, model, sizes, width)
    return dict(found)


def _add_activations(
    found: Counter[tuple[str, ...]],
    config: TrainConfig,
    model: Config,
    sizes: Mapping[str, int],
    width: int,
) -> None:
    """Adds the sums over `tensor` and the rows that experts exchange."""
    stack = main_stack(model)
    rows = partition_spec("B", (config.batch_size // config.accumulate,), sizes)
    ways = math.prod(sizes[axis] for axis in _names(rows[0]))
    stream = config.batch_size / ways * config.seq_len * stack.embed_dim * width
    layers = (
        len(model.encoder.kinds) + len(model.decoder.kinds)
        if isinstance(model, TwoStackConfig)
        else stack.num_layers
    )
    if "tensor" in sizes:
        found["tensor",] += 4 * layers * stream * share("all-reduce", sizes["tensor"])
    experts = stack.experts
    if experts is not None and "expert" in sizes and experts.num_experts % sizes["expert"] == 0:
        count = sum(kind.mlp == "experts" for kind in stack.kinds)
        exchanged = 4 * count * stream * experts.top_k
        found["expert",] += exchanged * share("all-to-all", sizes["expert"])


def main_stack(model: Config) -> StackConfig:
    """Returns the config of a model's stack, or of the decoder of two."""
    return model.decoder if isinstance(model, TwoStackConfig) else model


def _names(part: object) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)  # type: ignore[arg-type]


def _only_looked_up(model: Config) -> set[str]:
    """Returns the names of tables that no matmul uses: embeddings without a tied head."""
    named = named_parameters(build_abstract(model))
    has_head = any(name.endswith("lm_head.kernel") for name in named)
    tables = {name for name in named if name.endswith(".embedding")}
    return tables if has_head else {name for name in tables if not name.endswith("embed.embedding")}
