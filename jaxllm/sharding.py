"""Sharding by dimension letters: one table maps each letter to the mesh axes that split it.

The shape of the mesh decides the layout. An axis of size 1 shards nothing, so the same table gives
data parallelism, FSDP, tensor parallelism and their combinations.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "sequence", "tensor", "expert")  # of every mesh, in this order

# Axes that split the residual stream as well with `norms.sequence_parallel`.
SEQUENCE_PARALLEL = {"T": ("tensor",)}
# The mesh axes that split a dimension of each letter.
DIMS: dict[str, tuple[str, ...]] = {
    "B": ("data", "fsdp", "expert"),  # batch
    "T": ("sequence",),  # query length
    "S": (),  # key length
    "C": (),  # cache slots, and tokens that a convolution spans
    "D": ("fsdp", "sequence", "expert"),  # embed_dim; experts have used `expert` for E
    "N": ("tensor",),  # query heads
    "K": ("tensor",),  # key/value heads
    "G": (),  # query heads per key/value head
    "H": (),  # head_dim
    "F": ("tensor",),  # mlp_dim
    "V": ("tensor",),  # vocab_size
    "E": ("expert",),  # experts
    "I": (),  # input_dim
    "O": (),  # output_dim
    "L": (),  # stacked layers
    "R": (),  # rank of LoRA's factors
    "P": ("fsdp", "sequence", "expert"),  # width of the latent of keys and values
    "Q": ("fsdp", "sequence", "expert"),  # width of the latent of queries
    "W": (),  # width of the values in a recurrent state
    ".": (),  # any dimension that is never sharded
}

WIDTHS = tuple(letter for letter, axes in DIMS.items() if axes == DIMS["D"])


def partition_spec(
    dims: str,
    shape: Sequence[int],
    mesh_shape: Mapping[str, int],
    more: Mapping[str, tuple[str, ...]] = {},
) -> PartitionSpec:
    """Returns the partition of an array by the letters of its dimensions.

    A mesh axis splits the first dimension that can use it: `BTD` is split along the batch only,
    `DF` along both dimensions. A dimension whose size the axis does not divide stays unsharded,
    such as two key/value heads on four tensor-parallel devices, or a batch of one sequence on a
    data-parallel mesh.

    Args:
        dims: a letter of `DIMS` for each dimension.
        shape: the array's shape.
        mesh_shape: the size of each mesh axis.
        more: mesh axes that split a letter's dimension beside those of `DIMS`.
    """
    return PartitionSpec(*(axes or None for axes in _claims(dims, shape, mesh_shape, more)))


def unsharded_dims(
    dims: str, shape: Sequence[int], mesh_shape: Mapping[str, int]
) -> list[tuple[str, str, int]]:
    """Lists the (mesh axis, letter, size) that stay unsharded because the axis does not divide."""
    used = {axis for axes in _claims(dims, shape, mesh_shape) for axis in axes}
    return [
        (axis, letter, size)
        for letter, size in zip(dims, shape, strict=True)
        for axis in DIMS[letter]
        if mesh_shape.get(axis, 1) > 1 and axis not in used
    ]


def _claims(
    dims: str,
    shape: Sequence[int],
    mesh_shape: Mapping[str, int],
    more: Mapping[str, tuple[str, ...]] = {},
) -> list[tuple[str, ...]]:
    """Returns the mesh axes that split each dimension."""
    used: set[str] = set()
    claims: list[tuple[str, ...]] = []
    for letter, size in zip(dims, shape, strict=True):
        axes: tuple[str, ...] = ()
        ways = 1
        for axis in (*DIMS[letter], *more.get(letter, ())):
            finer = ways * mesh_shape.get(axis, 1)
            if finer > ways and axis not in used and size % finer == 0:
                axes, ways = (*axes, axis), finer
        used.update(axes)
        claims.append(axes)
    return claims


def named_sharding(dims: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array on a mesh, by the letters of its dimensions."""
    return NamedSharding(mesh, partition_spec(dims, shape, mesh.shape))


def spec_axes(*parts: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Lists the mesh axes that parts of a `PartitionSpec` name."""
    return tuple(
        axis for part in parts for axis in ((part,) if isinstance(part, str) else part or ())
    )


def constrain(x: jax.Array, dims: str, more: Mapping[str, tuple[str, ...]] = {}) -> jax.Array:
    """Constrains the sharding of an activation by its letters; a no-op outside `jax.set_mesh`.

    `more` names mesh axes that split a letter's dimension beside those of `DIMS`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(dims, x.shape, mesh.shape, more))


def multi_device_mesh() -> AbstractMesh | None:
    """Returns the mesh in use, or None if there is none or it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """Returns the platform that programs run on, of the mesh in use if there is one: "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def spans_processes(x: jax.Array | np.ndarray) -> bool:
    """Whether the array is spread over processes, so that no single one holds all of it."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def to_host(x: jax.Array) -> np.ndarray:
    """Copies a whole array to the host.

    An array that spans processes is gathered, so every process must call this at the same time.
    """
    return multihost_utils.process_allgather(x, tiled=True) if spans_processes(x) else np.asarray(x)
