"""Dimension letters, and the mesh axes each one is sharded over.

Layouts are mesh shapes: an axis of size 1 shards nothing, so data parallelism, FSDP, tensor
parallelism and their products are all this one table.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "expert")

DIMS: dict[str, tuple[str, ...]] = {
    "B": ("data", "fsdp", "expert"),  # batch
    "T": (),  # query length
    "S": (),  # key length
    "C": (),  # cache slots
    "D": ("fsdp",),  # embed_dim
    "N": ("tensor",),  # query heads
    "K": ("tensor",),  # key/value heads
    "G": (),  # query heads per key/value head
    "H": (),  # head_dim
    "F": ("tensor",),  # mlp_dim
    "V": ("tensor",),  # vocab_size
    "E": ("expert",),  # experts
    "I": (),  # input_dim
    "O": (),  # output_dim
    "L": (),  # layers, where stacked
    ".": (),  # any dimension kept whole
}


def partition_spec(dims: str, shape: Sequence[int], mesh_shape: Mapping[str, int]) -> PartitionSpec:
    """Partition of an array of `shape` whose dimensions are the letters `dims`.

    A mesh axis goes to its first claimant, so that `BTD` is split over the batch and `DF` over
    both dimensions. A dimension that the axis does not divide stays whole (two key/value heads
    on four tensor-parallel devices, one sequence on a data-parallel mesh).
    """
    return PartitionSpec(*(axes or None for axes in _claims(dims, shape, mesh_shape)))


def unsharded_dims(
    dims: str, shape: Sequence[int], mesh_shape: Mapping[str, int]
) -> list[tuple[str, str, int]]:
    """The (mesh axis, letter, size) that `partition_spec` leaves whole: it does not divide."""
    used = {axis for axes in _claims(dims, shape, mesh_shape) for axis in axes}
    return [
        (axis, letter, size)
        for letter, size in zip(dims, shape, strict=True)
        for axis in DIMS[letter]
        if mesh_shape.get(axis, 1) > 1 and axis not in used
    ]


def _claims(
    dims: str, shape: Sequence[int], mesh_shape: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """The mesh axes that each dimension gets."""
    used: set[str] = set()
    claims: list[tuple[str, ...]] = []
    for letter, size in zip(dims, shape, strict=True):
        axes: tuple[str, ...] = ()
        ways = 1
        for axis in DIMS[letter]:
            more = ways * mesh_shape.get(axis, 1)
            if more > ways and axis not in used and size % more == 0:
                axes, ways = (*axes, axis), more
        used.update(axes)
        claims.append(axes)
    return claims


def named_sharding(dims: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Where each part of a parameter lives on the mesh."""
    return NamedSharding(mesh, partition_spec(dims, shape, mesh.shape))


def constrain(x: jax.Array, dims: str) -> jax.Array:
    """Shards the activation `x` by its dimensions; does nothing outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(dims, x.shape, mesh.shape))


def spans_processes(x: jax.Array | np.ndarray) -> bool:
    """Whether no process alone has all of the array."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def to_host(x: jax.Array) -> np.ndarray:
    """All of an array; gathered if it spans processes, which all of them must do at once."""
    return multihost_utils.process_allgather(x, tiled=True) if spans_processes(x) else np.asarray(x)
