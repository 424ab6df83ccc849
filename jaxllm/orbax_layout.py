"""The layout of an Orbax checkpoint, one step of a run: `checkpoints/STEP/ITEM`."""

import math
from pathlib import Path
from typing import Any

import tensorstore

METADATA_FILE = (
    "_CHECKPOINT_METADATA"  # without which neither Orbax nor we take a folder for a step
)
METADATA_KEY = "jaxllm"  # the key of what we say of a step


def is_step(path: Path) -> bool:
    """Whether a folder is a step that is complete."""
    return (path / METADATA_FILE).is_file()


def list_steps(run: Path) -> dict[int, Path]:
    """The complete steps of a run by their numbers, oldest first."""
    found = (run / "checkpoints").glob("*")
    steps = {int(path.name): path for path in found if path.name.isdigit() and is_step(path)}
    return dict(sorted(steps.items()))


def array_spec(step: Path, item: str, name: str) -> dict[str, Any]:
    """Where TensorStore finds an array of an item, as in `model` and `embed.embedding`."""
    base = {"driver": "file", "path": f"{step / item}/"}
    return {"driver": "auto", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}


def chunk_bytes(store: tensorstore.TensorStore) -> int:
    """How much is read at once of an array, which is cut as it was sharded when it was saved."""
    shape = store.chunk_layout.read_chunk.shape or ()
    return math.prod(size or 1 for size in shape) * store.dtype.numpy_dtype.itemsize
