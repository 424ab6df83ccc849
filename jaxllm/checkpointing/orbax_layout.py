"""Layout of a run's Orbax checkpoints on disk: `checkpoints/STEP/ITEM`."""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore

from jaxllm.errors import OTHER_VERSION, CheckpointError, first_line
from jaxllm.storage.download import COMMITTED
from jaxllm.storage.paths import is_remote, kvstore

from .digests import digest_json

METADATA_FILE = "_CHECKPOINT_METADATA"  # a folder without it is not a complete step, to Orbax too
TREE_FILE = "_METADATA"  # of an item: the tree of its arrays
METADATA_KEY = "jaxllm"  # the key of jaxllm's own metadata of a step
ADAPTER = "adapter"  # likewise, if the item `model` is LoRA's: the base that it belongs to
REFERENCE = "reference"  # likewise, with DPO: the weights that a run computes with besides
DIGESTS = "digests"  # in jaxllm's metadata: of each array by item and name, and of the rest of it
ABOUT = "metadata"  # the key of the digest of the rest
DIFFERS = "its digest is not the one that was written with it"


def is_step(path: Path) -> bool:
    """Whether a folder holds a complete step."""
    # On an object store, a step is written in place, and this file comes last.
    is_whole = not is_remote(path) or (path / COMMITTED).is_file()
    return is_whole and (path / METADATA_FILE).is_file()


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
    """The metadata of a step: jaxllm's own, and the dotted names of the arrays of each item."""

    about: dict[str, Any]
    items: dict[str, tuple[str, ...]]


def read_step(step: Path, *groups: str) -> StepMetadata:
    """Reads the metadata of a step.

    Orbax's own reader opens every array, and leaves errors of damaged ones to the event loop.

    Args:
        step: the folder of a step.
        groups: names of groups of fields that jaxllm's own metadata must have.

    Raises:
        CheckpointError: jaxllm did not write the checkpoint, a group is missing, or the metadata
            are damaged.
        OSError: a file cannot be read.
    """
    found = _read_json(step, METADATA_FILE)
    custom, handlers = found.get("custom_metadata"), found.get("item_handlers")
    about = custom.get(METADATA_KEY) if isinstance(custom, dict) else None
    if about is None or not isinstance(handlers, dict) or "model" not in handlers:
        raise CheckpointError("this checkpoint was not written by jaxllm, or it is damaged", step)
    problems = group_problems({METADATA_KEY: about}, [METADATA_KEY])
    if problems := problems or group_problems(about, groups) or _digest_problems(about):
        raise CheckpointError([*problems, OTHER_VERSION], step)
    items = {item: _array_names(step, item) for item in handlers}
    for item, digests in about.get(DIGESTS, {}).items():
        if item != ABOUT and set(digests) != set(items.get(item, ())):
            raise CheckpointError(f"{item} does not have the arrays that were written", step)
    return StepMetadata(about, items)


def _read_json(step: Path, name: str) -> dict[str, Any]:
    """Reads one of Orbax's metadata files."""
    try:
        found = json.loads((step / name).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{name} is missing", step) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged: {first_line(error)}", step) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} is damaged: it is not a group of fields", step)
    return found


def _array_names(step: Path, item: str) -> tuple[str, ...]:
    """Returns the dotted names of the arrays of an item, from Orbax's description of its tree."""
    file = f"{item}/{TREE_FILE}"
    try:
        leaves = [*_read_json(step, file)["tree_metadata"].values()]
        return tuple(
            ".".join(part["key"] for part in leaf["key_metadata"])
            for leaf in leaves
            if not leaf["value_metadata"]["skip_deserialize"]
        )
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{file} is damaged: it does not describe a tree", step) from None


def group_problems(fields: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Lists which of these names are missing in `fields` or are not groups of fields."""
    return [
        f"{name} is {reprlib.repr(fields[name])}, not a group of fields"
        if name in fields
        else f"{name} is missing"
        for name in names
        if not isinstance(fields.get(name), dict)
    ]


def step_metadata(about: Mapping[str, Any], digests: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata to store with a step.

    Args:
        about: jaxllm's own description of the step.
        digests: those of the arrays, by item and name.
    """
    described = {**about, DIGESTS: dict(digests)}
    described[DIGESTS][ABOUT] = digest_json(described)
    return {METADATA_KEY: described}


def stored_digest(about: Mapping[str, Any], item: str, name: str) -> str | None:
    """Returns the digest of an array from a step's metadata; None in steps written before."""
    return about[DIGESTS].get(item, {}).get(name) if DIGESTS in about else None


def reason(error: BaseException) -> str:
    """Returns the first line of an error of TensorStore or Orbax, without TensorStore's spec."""
    return first_line(error).partition(" [tensorstore_spec=")[0]


def _digest_problems(about: Mapping[str, Any]) -> list[str]:
    """Returns whether the description is not the one that its own digest was computed from."""
    digests = about.get(DIGESTS)
    if digests is None:
        return []
    if not isinstance(digests, dict) or not all(map(_is_digest, digests.items())):
        return [f"{DIGESTS} is {reprlib.repr(digests)}, not digests of arrays"]
    others = {name: value for name, value in digests.items() if name != ABOUT}
    if digest_json({**about, DIGESTS: others}) != digests.get(ABOUT):
        return [f"the description of the model or the run is damaged: {DIFFERS}"]
    return []


def _is_digest(entry: tuple[str, Any]) -> bool:
    name, value = entry
    return isinstance(value, str if name == ABOUT else dict)


def array_spec(step: Path, item: str, name: str) -> dict[str, Any]:
    """Returns the TensorStore spec of one array.

    Args:
        step: the folder of a step.
        item: the item within the step, such as `model`.
        name: the array's dotted name, such as `embed.embedding`.
    """
    base = kvstore(step / item)
    return {"driver": "auto", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}


def chunk_bytes(store: tensorstore.TensorStore) -> int:
    """Returns the size of an array's read chunk in bytes; chunks are the shards it was saved in."""
    shape = store.chunk_layout.read_chunk.shape or ()
    return math.prod(size or 1 for size in shape) * store.dtype.numpy_dtype.itemsize
