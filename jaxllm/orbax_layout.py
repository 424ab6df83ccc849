"""Layout of a run's Orbax checkpoints on disk: `checkpoints/STEP/ITEM`."""

import math
from pathlib import Path
from typing import Any

import tensorstore

METADATA_FILE = "_CHECKPOINT_METADATA"  # a folder without it is not a complete step, to Orbax too
METADATA_KEY = "jaxllm"  # the key of jaxllm's own metadata of a step


def is_step(path: Path) -> bool:
    """Whether a folder holds a complete step."""
    return (path / METADATA_FILE).is_file()


def list_steps(run: Path) -> dict[int, Path]:
    """Maps the number of each complete step of a run to its folder, oldest first."""
    found = (run / "checkpoints").glob("*")
    steps = {int(path.name): path for path in found if path.name.isdigit() and is_step(path)}
    return dict(sorted(steps.items()))


def array_spec(step: Path, item: str, name: str) -> dict[str, Any]:
    """Returns the TensorStore spec of one array.

    Args:
        step: the folder of a step.
        item: the item within the step, such as `model`.
        name: the array's dotted name, such as `embed.embedding`.
    """
    base = {"driver": "file", "path": f"{step / item}/"}
    return {"driver": "auto", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}


def chunk_bytes(store: tensorstore.TensorStore) -> int:
    """Returns the size of an array's read chunk in bytes; chunks are the shards it was saved in."""
    shape = store.chunk_layout.read_chunk.shape or ()
    return math.prod(size or 1 for size in shape) * store.dtype.numpy_dtype.itemsize
