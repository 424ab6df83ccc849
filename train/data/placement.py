"""Batch placement: which rows each process reads, and global arrays assembled from them."""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxllm.sharding import named_sharding

from .batches import Batch


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the numbers of the rows of each batch that this process's devices hold, in order."""
    rows = named_sharding("B", (batch_size,), mesh)
    parts = rows.addressable_devices_indices_map((batch_size,)).values()
    held = [np.arange(batch_size)[part] for part in parts if part is not None]
    return np.unique(np.concatenate(held))


def on_mesh(batch: Batch, mesh: Mesh, batch_size: int) -> dict[str, Array]:
    """Assembles the global batch from the rows that each process has read.

    Args:
        batch: this process's rows, those of `own_rows`.
        mesh: the mesh to shard the rows over.
        batch_size: rows of the global batch.
    """
    sharding = named_sharding("B", (batch_size,), mesh)
    first = np.full(batch_size, -1)  # the place among this process's rows
    own = own_rows(mesh, batch_size)
    first[own] = np.arange(len(own))

    def place(x: np.ndarray) -> Array:
        def part(index: Any) -> np.ndarray:
            return x[first[index[0]]]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, part)

    return {name: place(x) for name, x in batch.items()}
