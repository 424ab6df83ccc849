"""Placements: which mesh axes split the dimensions of an array."""

from collections.abc import Mapping, Sequence

from jax.sharding import NamedSharding, PartitionSpec

from .program import Region

Axes = tuple[tuple[str, ...], ...]
Shape = tuple[int, ...]


def spec_axes(spec: PartitionSpec, ndim: int) -> Axes:
    """Returns the mesh axes of each dimension."""
    parts = [*spec, *(None,) * (ndim - len(spec))]
    return tuple(
        ()
        if part in (None, PartitionSpec.UNCONSTRAINED)
        else (part,)
        if isinstance(part, str)
        else tuple(part)
        for part in parts
    )


def place_inputs(region: Region, shardings: Sequence[NamedSharding]) -> None:
    """Splits the inputs of a program by their shardings."""
    for value, sharding in zip(region.inputs, shardings, strict=True):
        value.axes = spec_axes(sharding.spec, len(value.shape))


def active(axes: Axes, mesh_shape: Mapping[str, int]) -> Axes:
    """Leaves out mesh axes of one device."""
    return tuple(tuple(axis for axis in part if mesh_shape[axis] > 1) for part in axes)
