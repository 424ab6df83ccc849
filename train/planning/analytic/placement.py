"""Placements: which mesh axes split the dimensions of an array."""

from collections.abc import Mapping, Sequence

from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.sharding import spec_axes

from .program import Region

Axes = tuple[tuple[str, ...], ...]
Shape = tuple[int, ...]


def axes_by_dim(spec: PartitionSpec, ndim: int) -> Axes:
    """Returns the mesh axes that split each dimension."""
    parts = [*spec, *(None,) * (ndim - len(spec))]
    return tuple(() if part is PartitionSpec.UNCONSTRAINED else spec_axes(part) for part in parts)


def place_inputs(region: Region, shardings: Sequence[NamedSharding]) -> None:
    """Splits the inputs of a program by their shardings."""
    for value, sharding in zip(region.inputs, shardings, strict=True):
        value.axes = axes_by_dim(sharding.spec, len(value.shape))


def active(axes: Axes, mesh_shape: Mapping[str, int]) -> Axes:
    """Leaves out mesh axes of one device."""
    return tuple(tuple(axis for axis in part if mesh_shape[axis] > 1) for part in axes)
