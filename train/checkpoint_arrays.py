"""Lazy access to the arrays of a run's checkpoint: opened by name, read on request."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore

from jaxllm.errors import CheckpointError
from jaxllm.orbax_layout import array_spec, chunk_bytes, read_step
from jaxllm.params import unstack_name

PARAMETER, FIRST_MOMENT, SECOND_MOMENT = "parameter", "first moment", "second moment"
MOMENTS = {"mu": FIRST_MOMENT, "nu": SECOND_MOMENT}  # keyed by Optax's field names

Key = tuple[str, str]  # kind and parameter name: ("first moment", "layers.7.mlp.up_proj.kernel")


class StoredArray(NamedTuple):
    """An array of a checkpoint, or one layer's slice of a stacked array; read on request."""

    store: tensorstore.TensorStore

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self.store.dtype.numpy_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The full shape."""
        return tuple(self.store.shape)

    def read(self, box: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
        """Reads the array, or a part of it: `box` has a (start, stop) range per dimension."""
        part = self.store if box is None else self.store[tuple(slice(*bounds) for bounds in box)]
        return np.asarray(part.read().result())


def open_arrays(step: Path, item: str) -> dict[Key, StoredArray]:
    """Opens every array of `item`, "model" or "optimizer"; scanned layers stay stacked.

    Raises:
        CheckpointError: jaxllm did not write the checkpoint, or it has no such item.
    """
    step = step.resolve()
    items = read_step(step).items
    if item not in items:
        raise CheckpointError(f"it has no {item}", step)
    paths = sorted(".".join(path) for path in _leaves(items[item]))
    return {_key(item, path): StoredArray(_open(step, item, path)) for path in paths}


def open_step(step: Path) -> dict[Key, StoredArray]:
    """Opens every array of a checkpoint, stacked layers as one array per layer."""
    stored = {**open_arrays(step, "model"), **open_arrays(step, "optimizer")}
    return {
        (kind, layer_name): array if layer is None else StoredArray(array.store[layer])
        for (kind, name), array in stored.items()
        for layer_name, layer in unstack_name(name)
    }


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of every array in the tree."""
    if isinstance(tree, dict | list | tuple):
        children = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, child in children:
            yield from _leaves(child, (*path, str(key)))
    elif tree is not None:
        yield path


def _key(item: str, path: str) -> Key:
    """Maps a stored path to its key: `1.0.mu.embed.embedding` is a first moment.

    Optimizer state other than moments keeps its path as its name.
    """
    if item == "model":
        return PARAMETER, path
    for field, kind in MOMENTS.items():
        _, found, name = path.partition(f".{field}.")
        if found:
            return kind, name
    return item, path


def _open(step: Path, item: str, name: str) -> tensorstore.TensorStore:
    spec = array_spec(step, item, name)
    # Stacked layers that were on one device share a chunk. Cached, it is read only once.
    limit = 2 * chunk_bytes(tensorstore.open(spec, read=True).result())
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": limit}})
    return tensorstore.open(spec, read=True, context=context).result()
