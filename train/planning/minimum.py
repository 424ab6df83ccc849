"""The least that a step must move between devices, by mesh axes, for its sharding and dtypes."""

import math
from collections import defaultdict
from collections.abc import Mapping

import jax.numpy as jnp

from jaxllm.config import Config, TwoStackConfig, stacks_of
from jaxllm.models import build_abstract
from jaxllm.params import dim_letters, named_parameters
from jaxllm.sharding import DIMS, partition_spec, spec_axes
from jaxllm.train.config import TrainConfig
from jaxllm.train.finetuning.start import activation_dtype
from jaxllm.train.speed.model_flops import is_head, is_looked_up

from .collectives import share

_TOKENS = (*DIMS["B"], *DIMS["T"])  # the mesh axes that split the tokens


def minimum_bytes(
    config: TrainConfig, model: Config, mesh_shape: Mapping[str, int]
) -> dict[tuple[str, ...], float]:
    """Returns the least bytes that each device must receive in a step, by mesh axes.

    - Parameters that are split over axes of the batch: gathered for the forward and for the
      backward pass of each microbatch, in the dtype of activations; the head once. Tables that
      are only looked up are not gathered: rows are exchanged, and their gradients.
    - Gradients: reduced once per step; of kernels in `optimizer.reduce_dtype`, others in float32.
    - Experts that are split: each token's row goes to its experts and back, and its gradient too.
    - The axis `tensor`: the residual stream is summed after attention and after the MLP of each
      layer, in the forward and in the backward pass.
    - The axis `sequence`: keys and values of the whole sequence are gathered in both passes of each
      layer, and their gradients are reduced.
    """
    sizes = {axis: size for axis, size in mesh_shape.items() if size > 1}
    numerics = stacks_of(model)[-1].numerics
    width = jnp.dtype(activation_dtype(config) or numerics.dtype).itemsize
    reduced = jnp.dtype(config.optimizer.reduce_dtype or numerics.reduce_dtype).itemsize
    found: dict[tuple[str, ...], float] = defaultdict(float)
    named = named_parameters(build_abstract(model))
    stream = _tokens(config, sizes) * stacks_of(model)[-1].embed_dim * width
    for name, variable in named.items():
        shape, letters = variable.get_value().shape, dim_letters(variable)
        spec = partition_spec(letters, shape, mesh_shape)
        split: dict[str, str] = {}  # the letter that each mesh axis splits
        for letter, part in zip(letters, spec, strict=True):
            split |= {axis: letter for axis in spec_axes(part) if axis in sizes}
        batch = [axis for axis in _TOKENS if axis in sizes and split.get(axis) != "E"]
        gathered = tuple(axis for axis in sizes if axis in batch and axis in split)
        copied = tuple(axis for axis in sizes if axis in batch and axis not in split)
        part_size = math.prod(shape) / math.prod(sizes[axis] for axis in split)
        ways = math.prod(sizes[axis] for axis in gathered)
        is_kernel = name.endswith("kernel") or is_head(model, name)
        gradient_width = reduced if is_kernel else 4
        if gathered:
            whole = part_size * ways * share("all-gather", ways)
            if is_looked_up(model, name):
                is_of_text = name.endswith("embed.embedding")
                found[gathered] += is_of_text * 2 * stream * share("all-to-all", ways)
            else:
                reads = (1 if is_head(model, name) else 2) * config.accumulate
                found[gathered] += whole * (reads * width + gradient_width)
        if copied:
            among = math.prod(sizes[axis] for axis in copied)
            found[copied] += part_size * gradient_width * share("all-reduce", among)
    _add_activations(found, model, sizes, stream)
    if "sequence" in sizes:
        ways = sizes["sequence"]
        whole = _tokens(config, sizes) * ways * _key_value_size(model, mesh_shape) * width
        found["sequence",] += 3 * whole * share("all-gather", ways)
    return dict(found)


def _add_activations(
    found: dict[tuple[str, ...], float], model: Config, sizes: Mapping[str, int], stream: float
) -> None:
    """Adds the sums over `tensor` and the rows that experts exchange."""
    stack = stacks_of(model)[-1]
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


def _tokens(config: TrainConfig, sizes: Mapping[str, int]) -> float:
    """Returns the number of a device's tokens in a step."""
    shape = (config.batch_size // config.accumulate, config.seq_len)
    ways = math.prod(sizes[axis] for axis in spec_axes(*partition_spec("BT", shape, sizes)))
    return config.batch_size * config.seq_len / ways


def _key_value_size(model: Config, mesh_shape: Mapping[str, int]) -> float:
    """Returns the size of a token's keys and values in all layers, of a device's heads."""
    total = 0.0
    for stack in stacks_of(model):
        (split,) = partition_spec("K", (stack.num_kv_heads,), mesh_shape)
        heads = stack.num_kv_heads / math.prod(mesh_shape[axis] for axis in spec_axes(split))
        total += stack.num_layers * heads * (stack.head_dim + stack.value_dim)
    return total
