"""Projections of one input, whose gradients devices sum together rather than one by one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from jaxllm.sharding import partition_spec, platform

from .hooks import has_hook, without_hooks
from .linear import Linear

AXIS = "tensor"


def project_together(linears: Sequence[Linear], x: Array) -> tuple[Array, ...]:
    """Returns `linear(x)` for each of the projections.

    Where tensor parallelism splits their outputs, every device has a part of the input's gradient
    from each. XLA would sum each over the devices by itself; here a device adds its parts first.

    Args:
        linears: projections whose equations have the same input.
        x: their input.
    """
    mesh = jax.sharding.get_abstract_mesh()
    is_watched = any(map(has_hook, linears))  # values inside a shard_map cannot be recorded
    ways = 1 if mesh.empty or is_watched else mesh.shape.get(AXIS, 1)
    bare = [without_lora(without_hooks(linear)) for linear in linears] if ways > 1 else []
    graphdef, state = nnx.split(bare)
    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    specs = [partition_spec(v.dims, v.get_value().shape, {AXIS: ways}) for v in variables]
    if not all(AXIS in spec for spec in specs) or not specs:
        return tuple(linear(x) for linear in linears)

    def local(arrays: list[Array], x: Array) -> tuple[Array, ...]:
        own = nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), arrays))
        # The gradient of this is the one sum. XLA for CPUs adds bfloat16 up in float32 anyway, but
        # ends the process where the sum is inside a shard_map over some of the axes.
        summed_in = jnp.float32 if platform() == "cpu" else x.dtype
        x = jax.lax.pcast(x.astype(summed_in), AXIS, to="varying").astype(x.dtype)
        return tuple(linear(x) for linear in own)

    outputs = tuple(_output_spec(linear, ways) for linear in linears)
    run = jax.shard_map(
        local, in_specs=(specs, PartitionSpec()), out_specs=outputs, axis_names={AXIS}
    )
    projected = run([variable.get_value() for variable in variables], x)
    return tuple(
        y if linear.lora is None else y + linear.lora(x).astype(y.dtype)
        for linear, y in zip(linears, projected, strict=True)
    )


def project_and_sum(linear: Linear, x: Array) -> Array:
    """Returns `linear(x)`, summed over `tensor` in the dtype of the output.

    XLA for GPUs would sum the parts before they are rounded, which moves twice the bytes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty or has_hook(linear) else mesh.shape.get(AXIS, 1)
    x_dims, dims, output = linear.equation.replace("->", ",").split(",")
    kernel = linear.kernel[...]
    spec = partition_spec(dims, kernel.shape, {AXIS: ways})
    summed = [letter for letter, part in zip(dims, spec, strict=True) if part]
    is_wide = jnp.dtype(linear.dtype).itemsize == jnp.dtype(jnp.float32).itemsize
    if is_wide or not summed or summed[0] in output:
        return linear(x)

    def local(kernel: Array, x: Array) -> Array:
        part = linear.multiply(x, kernel).astype(linear.dtype)
        summed_in = jnp.float32 if platform() == "cpu" else linear.dtype  # see above
        return jax.lax.psum(part.astype(summed_in), AXIS).astype(linear.dtype)

    given = PartitionSpec(*(AXIS if letter in summed else None for letter in x_dims))
    run = jax.shard_map(local, in_specs=(spec, given), out_specs=PartitionSpec(), axis_names={AXIS})
    return linear.finish(run(kernel, x), x)


def without_lora(linear: Linear) -> Linear:
    """Returns a copy of a projection without what LoRA adds to it."""
    copied = nnx.merge(*nnx.split(linear))
    copied.lora = nnx.data(None)
    return copied


def _output_spec(linear: Linear, ways: int) -> PartitionSpec:
    """Returns how an output is split over the axis: as the kernel is."""
    _, dims, output = linear.equation.replace("->", ",").split(",")
    spec = partition_spec(dims, linear.kernel.shape, {AXIS: ways})
    letters = dict(zip(dims, spec, strict=True))
    return PartitionSpec(*(letters.get(letter) for letter in output))
