"""Layout of a run's Orbax checkpoints on disk: `checkpoints/STEP/ITEM`."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore

from .errors import OTHER_VERSION, CheckpointError

METADATA_FILE = "_CHECKPOINT_METADATA"  # a folder without it is not a complete step, to Orbax too
METADATA_KEY = "jaxllm"  # the key of jaxllm's own metadata of a step


def is_step(path: Path) -> bool:
    """Whether a folder holds a complete step."""
    return (path / METADATA_FILE).is_file()


def list_steps(run: Path) -> dict[int, Path]:
    """Maps the number of each complete step of a run to its folder, oldest first.

    Raises:
        OSError: a folder cannot be read.
    """
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()  # glob would hide an unreadable folder
    steps = {int(path.name): path for path in found if path.name.isdecimal() and is_step(path)}
    return dict(sorted(steps.items()))


class StepMetadata(NamedTuple):
    """The metadata of a step: jaxllm's own, and that of the arrays of each item."""

    about: dict[str, Any]
    items: dict[str, Any]


def read_step(step: Path, *groups: str) -> StepMetadata:
    """Reads the metadata of a step.

    Args:
        step: the folder of a step.
        groups: names of groups of fields that jaxllm's own metadata must have.

    Raises:
        CheckpointError: jaxllm did not write the checkpoint, or a group is missing.
        OSError: a file cannot be read.
    """
    from orbax.checkpoint import v1 as ocp  # importing it takes long, and models do not need it

    found = ocp.checkpointables_metadata(step.resolve())
    about = (found.custom_metadata or {}).get(METADATA_KEY)
    if about is None or not found.metadata.get("model") or None in found.metadata.values():
        _check_readable(step)  # Orbax takes unreadable files for missing ones
        raise CheckpointError("this checkpoint was not written by jaxllm, or it is damaged", step)
    if problems := group_problems({METADATA_KEY: about}, [METADATA_KEY]) or group_problems(
        about, groups
    ):
        raise CheckpointError([*problems, OTHER_VERSION], step)
    return StepMetadata(about, found.metadata)


def group_problems(fields: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Lists which of these names are missing in `fields` or are not groups of fields."""
    return [
        f"{name} is {reprlib.repr(fields[name])}, not a group of fields"
        if name in fields
        else f"{name} is missing"
        for name in names
        if not isinstance(fields.get(name), dict)
    ]


def _check_readable(folder: Path) -> None:
    """Raises OSError if a file in the folder, at any depth, cannot be read."""
    for path in folder.iterdir():
        if path.is_dir():
            _check_readable(path)
        else:
            path.open("rb").close()


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
