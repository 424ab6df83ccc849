"""Batch placement: which rows each process reads, and global arrays assembled from them."""

from typing import TypedDict

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.sharding import partition_spec

from .batches import Batch


class Share(TypedDict):
    """The share of each batch that a process reads: part `rank` of `world` equal parts."""

    rank: int
    world: int


def share_of(mesh: Mesh) -> Share:
    """Returns this process's share of each batch; processes holding the same rows share it."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    parts = rows.addressable_devices_indices_map((ways,)).values()
    own_parts = sorted({part[0].indices(ways)[0] for part in parts if part is not None})
    return {"rank": own_parts[0] // len(own_parts), "world": ways // len(own_parts)}


def on_mesh(batch: Batch, mesh: Mesh, batch_size: int) -> dict[str, Array]:
    """Assembles the global batch from the rows that each process has read.

    Args:
        batch: this process's rows, as `Batches` yields them.
        mesh: the mesh to shard the rows over.
        batch_size: rows of the global batch.
    """
    rows = NamedSharding(mesh, partition_spec("B", (batch_size,), mesh.shape))
    return {
        name: jax.make_array_from_process_local_data(rows, x, (batch_size, *x.shape[1:]))
        for name, x in batch.items()
    }
