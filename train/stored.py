"""The arrays of a run's checkpoint, opened one by one and read layer by layer."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxllm.params import layers_of

from .checkpoint import ABOUT

# What each item and each of its trees is called here.
WHAT = {"model": "parameter", "mu": "first moment", "nu": "second moment"}


class Stored(NamedTuple):
    """An array of a checkpoint, or one layer's part of it."""

    what: str  # parameter, first moment or second moment; or what else the optimizer holds
    name: str  # as in `layers.7.mlp.up_proj.kernel`
    store: tensorstore.TensorStore
    layer: int | None  # where it is one of several stacked

    @property
    def shape(self) -> tuple[int, ...]:
        """That of its numbers."""
        return tuple(self._own.shape)

    def read(self) -> np.ndarray:
        """Its numbers."""
        return np.asarray(self._own.read().result())

    @property
    def _own(self) -> tensorstore.TensorStore:
        return self.store if self.layer is None else self.store[self.layer]


def steps_of(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by the number of steps taken."""
    found = (run / "checkpoints").glob("*")
    steps = [path for path in found if path.name.isdigit() and ocp.is_orbax_checkpoint(path)]
    return {int(path.name): path for path in sorted(steps, key=lambda path: int(path.name))}


def about(step: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: config, origin, run and data."""
    metadata = ocp.checkpointables_metadata(step.resolve()).custom_metadata or {}
    if ABOUT not in metadata:
        raise ValueError(f"{step} is a checkpoint that jaxllm did not write")
    return metadata[ABOUT]


def open_step(step: Path) -> dict[tuple[str, str], Stored]:
    """Every array of a checkpoint by what it is and its name, the layers of a stack one by one."""
    step = step.resolve()
    items = ocp.checkpointables_metadata(step).metadata
    found = [stored for item in ("model", "optimizer") for stored in _open(step, item, items[item])]
    return {(stored.what, stored.name): stored for stored in found}


def _open(step: Path, item: str, tree: Any) -> Iterator[Stored]:
    for path in sorted(".".join(path) for path in leaves(tree)):
        what, name = _told(item, path)
        store = open_array(step, item, path)
        for own, layer in layers_of(name):
            yield Stored(what, own, store, layer)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a tree's arrays."""
    if isinstance(tree, dict | list | tuple):
        children = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, child in children:
            yield from leaves(child, (*path, str(key)))
    elif tree is not None:
        yield path


def _told(item: str, path: str) -> tuple[str, str]:
    """What an array is, and its name: `1.0.mu.embed.embedding` is a moment of a parameter."""
    if item == "model":
        return WHAT[item], path
    for tree in ("mu", "nu"):
        _, found, name = path.partition(f".{tree}.")
        if found:
            return WHAT[tree], name
    return item, path


def open_array(step: Path, item: str, name: str) -> tensorstore.TensorStore:
    """An array of a checkpoint, of which nothing is read yet."""
    base = {"driver": "file", "path": f"{step / item}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    spec = {"driver": "auto", "kvstore": kvstore}
    store = tensorstore.open(spec, read=True).result()
    # The layers of a stack lie in one chunk if they were on one device: it is read once.
    shape = store.chunk_layout.read_chunk.shape or ()
    size = math.prod(n or 1 for n in shape) * store.dtype.numpy_dtype.itemsize
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2 * size}})
    return tensorstore.open(spec, read=True, context=context).result()
