"""The arrays of a run's checkpoint, opened one by one and read when they are asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxllm.errors import UserError
from jaxllm.orbax_layout import METADATA_KEY, array_spec, chunk_bytes
from jaxllm.params import unstack_name

PARAMETER, FIRST_MOMENT, SECOND_MOMENT = "parameter", "first moment", "second moment"
MOMENTS = {"mu": FIRST_MOMENT, "nu": SECOND_MOMENT}  # by the optimizer's trees

Key = tuple[str, str]  # what it is, and its name, as in `layers.7.mlp.up_proj.kernel`


class StoredArray(NamedTuple):
    """An array of a checkpoint, or one layer's part of it."""

    store: tensorstore.TensorStore

    @property
    def dtype(self) -> np.dtype:
        """That of its numbers."""
        return self.store.dtype.numpy_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole."""
        return tuple(self.store.shape)

    def read(self, box: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
        """Its numbers, or those of a box: one range for each dimension."""
        part = self.store if box is None else self.store[tuple(slice(*bounds) for bounds in box)]
        return np.asarray(part.read().result())


def read_metadata(step: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: config, origin, run and data."""
    metadata = ocp.checkpointables_metadata(step.resolve()).custom_metadata or {}
    if METADATA_KEY not in metadata:
        raise UserError(f"{step} is a checkpoint that jaxllm did not write")
    return metadata[METADATA_KEY]


def open_arrays(step: Path, item: str) -> dict[Key, StoredArray]:
    """Every array of the `model` or of the `optimizer`, those of stacked layers as they are."""
    step = step.resolve()
    tree = ocp.checkpointables_metadata(step).metadata[item]
    paths = sorted(".".join(path) for path in _leaves(tree))
    return {_key(item, path): StoredArray(_open(step, item, path)) for path in paths}


def open_step(step: Path) -> dict[Key, StoredArray]:
    """Every array of a checkpoint, the layers of a stack one by one."""
    whole = {**open_arrays(step, "model"), **open_arrays(step, "optimizer")}
    return {
        (what, own): array if layer is None else StoredArray(array.store[layer])
        for (what, name), array in whole.items()
        for own, layer in unstack_name(name)
    }


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a tree's arrays."""
    if isinstance(tree, dict | list | tuple):
        children = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, child in children:
            yield from _leaves(child, (*path, str(key)))
    elif tree is not None:
        yield path


def _key(item: str, path: str) -> Key:
    """Of `1.0.mu.embed.embedding`, a moment of a parameter; what else there is goes by its path."""
    if item == "model":
        return PARAMETER, path
    for tree, what in MOMENTS.items():
        _, found, name = path.partition(f".{tree}.")
        if found:
            return what, name
    return item, path


def _open(step: Path, item: str, name: str) -> tensorstore.TensorStore:
    spec = array_spec(step, item, name)
    # The layers of a stack lie in one chunk if they were on one device: it is read once.
    limit = 2 * chunk_bytes(tensorstore.open(spec, read=True).result())
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": limit}})
    return tensorstore.open(spec, read=True, context=context).result()
