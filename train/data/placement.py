"""Batches on a mesh: the rows that a process reads, and the global arrays made of them."""

from typing import TypedDict

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.sharding import partition_spec

from .batches import Batch


class Share(TypedDict):
    """Which of `world` equal parts of each batch a process reads."""

    rank: int
    world: int


def share_of(mesh: Mesh) -> Share:
    """The part of each batch for this process; processes that hold the same rows read the same."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    parts = rows.addressable_devices_indices_map((ways,)).values()
    mine = sorted({part[0].indices(ways)[0] for part in parts if part is not None})
    return {"rank": mine[0] // len(mine), "world": ways // len(mine)}


def on_mesh(batch: Batch, mesh: Mesh, batch_size: int) -> dict[str, Array]:
    """The global batch, of which this process contributes the rows that it has read."""
    rows = NamedSharding(mesh, partition_spec("B", (batch_size,), mesh.shape))
    return {
        name: jax.make_array_from_process_local_data(rows, x, (batch_size, *x.shape[1:]))
        for name, x in batch.items()
    }
