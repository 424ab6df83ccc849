"""Kernels that devices share: gathering them, and adding up the devices' parts of their gradients.

Where several mesh axes split a kernel, TPUs go along one after the other. Each is a ring of their
torus; for all of them at once libtpu writes a gather as an all-reduce, which moves twice the bytes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jax.typing import DTypeLike

from jaxllm.sharding import DIMS, WIDTHS, constrain, partition_spec, platform, spec_axes

Module = TypeVar("Module", bound=nnx.Module)
Axes = tuple[str, ...]


def gather_kernels(module: Module, dtype: DTypeLike) -> Module:
    """Returns a copy of a layer whose kernels are whole along D, P and Q, rounded to a dtype.

    Within a layer that is recomputed, the backward pass then gathers each kernel once, for the
    recomputation and for the gradient of its input; left to XLA, each of them may gather it. The
    kernels have their own dtype, and so have their gradients, which are summed unrounded. Experts
    are left as they are: they gather their own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(mesh.shape.get(axis, 1) == 1 for axis in DIMS["D"]):
        return module
    graphdef, state = nnx.split(module)

    def gather(variable: Any) -> Any:
        dims = getattr(variable, "dims", "")
        if not {*WIDTHS} & {*dims} or "E" in dims or len(dims) == 1:
            return variable
        return variable.replace(_gather(dims, dtype, variable.get_value()))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(gather, state, is_leaf=is_variable))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(dims: str, dtype: DTypeLike, kernel: Array) -> Array:
    mesh, x = jax.sharding.get_abstract_mesh(), kernel.astype(dtype)
    parts = [*partition_spec(dims, x.shape, mesh.shape)]
    place = next((i for i, part in enumerate(parts) if part and dims[i] in WIDTHS), 0)
    axes = spec_axes(parts[place]) if dims[place] in WIDTHS else ()
    for kept in reversed(range(1, len(axes) if _in_stages() else 1)):
        parts[place] = axes[:kept]
        x = jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))
    whole = "".join("." if letter in WIDTHS else letter for letter in dims)
    return constrain(x, whole).astype(kernel.dtype)


_gather.defvjp(
    lambda dims, dtype, kernel: (_gather(dims, dtype, kernel), None),
    lambda dims, dtype, _, dkernel: (constrain(dkernel, dims),),
)


def gather_shards(x: Array, place: int, axes: Axes) -> Array:
    """Gathers a dimension over mesh axes, inside a shard_map that has them."""
    for group in reversed(_stages(axes)):
        x = jax.lax.all_gather(x, group, axis=place, tiled=True)
    return x


def scatter_sum(x: Array, place: int, axes: Axes) -> Array:
    """Sums over mesh axes, inside a shard_map; each device gets its part of a dimension."""
    for group in _stages(axes):
        x = jax.lax.psum_scatter(x, group, scatter_dimension=place, tiled=True)
    return x


def sum_in_stages(
    product: Callable[[Array, Array], Array], equation: str, x: Array, dy: Array, dtype: DTypeLike
) -> Array | None:
    """Returns a kernel's gradient, summed along one mesh axis that splits it after the other.

    Args:
        product: what a device adds to the gradient, by its parts of `x` and `dy`.
        equation: of the projection.
        x: its input.
        dy: the gradient of its output.
        dtype: in which devices sum.

    Returns:
        The gradient; None if fewer than two axes split the kernel, or some that do not split the
        rows of `x`: then XLA may sum as it likes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not _in_stages():
        return None
    x_dims, kernel_dims, y_dims = equation.replace("->", ",").split(",")
    sizes = dict(zip(x_dims, x.shape, strict=True)) | dict(zip(y_dims, dy.shape, strict=True))
    free = _automatic(mesh)
    if not free or not sizes.keys() <= DIMS.keys():  # such as rows sorted by their experts
        return None
    kernel = partition_spec(kernel_dims, [sizes[letter] for letter in kernel_dims], free)
    split = [i for i, part in enumerate(kernel) if part and kernel_dims[i] in WIDTHS]
    place = split[0] if split else 0
    axes = spec_axes(kernel[place]) if split else ()
    summed = [letter for letter in x_dims if letter in y_dims and letter not in kernel_dims]
    rows = {
        letter: part
        for letter, part in zip(x_dims, partition_spec(x_dims, x.shape, free), strict=True)
        if letter in summed
    }
    over = spec_axes(*rows.values())
    if len(axes) < 2 or not {*axes} <= {*over} or "E" in kernel_dims or not _nests(mesh, over):
        return None
    rest = tuple(axis for axis in over if axis not in axes)
    # XLA for CPUs ends the process where bfloat16 is summed inside such a shard_map.
    summed_in = jnp.float32 if platform() == "cpu" else dtype

    def local(x: Array, dy: Array) -> Array:
        part = scatter_sum(product(x, dy).astype(summed_in), place, axes)
        return (jax.lax.psum(part, rest) if rest else part).astype(dtype)

    specs = [PartitionSpec(*(rows.get(letter) for letter in dims)) for dims in (x_dims, y_dims)]
    out = PartitionSpec(*(axes if i == place else None for i in range(len(kernel_dims))))
    return jax.shard_map(local, in_specs=(*specs,), out_specs=out, axis_names={*over})(x, dy)


def _nests(mesh: AbstractMesh, axes: Axes) -> bool:
    """Whether a shard_map over these axes may stand where this is called.

    XLA of jax 0.12 ends the process unless those of a shard_map around it are earlier in the mesh.
    """
    free, names = _automatic(mesh), mesh.axis_names
    taken = [names.index(axis) for axis in names if axis not in free]
    is_ordered = max(taken, default=-1) < min(map(names.index, axes))
    return is_ordered or jax.__version_info__ < (0, 11)


def _automatic(mesh: AbstractMesh) -> dict[str, int]:
    """Returns the sizes of the mesh axes that no shard_map around this has taken."""
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {axis: size for axis, size, kind in kinds if kind == AxisType.Auto}


def _stages(axes: Sequence[str]) -> list[Axes]:
    """Returns the groups of mesh axes that a collective goes along, one after the other."""
    if not axes:
        return []
    return [(axis,) for axis in axes] if _in_stages() else [tuple(axes)]


def _in_stages() -> bool:
    """Whether devices are a torus. GPUs have one network, of which a library finds the best use."""
    return platform() not in ("gpu", "cuda")
