"""Lazy access to the arrays of a run's checkpoint: opened by name, read on request."""

from pathlib import Path

from jaxllm.checkpointing.orbax_layout import read_step
from jaxllm.checkpointing.stored_array import StoredArray, StoredLayer
from jaxllm.checkpointing.stored_array import open_arrays as open_stored
from jaxllm.errors import CheckpointError
from jaxllm.params import unstack_name
from jaxllm.storage.paths import absolute_path

PARAMETER, FIRST_MOMENT, SECOND_MOMENT = "parameter", "first moment", "second moment"
MOMENTS = {"mu": FIRST_MOMENT, "nu": SECOND_MOMENT}  # keyed by Optax's field names

Key = tuple[str, str]  # kind and parameter name: ("first moment", "layers.7.mlp.up_proj.kernel")


def open_arrays(step: Path, item: str) -> dict[Key, StoredArray]:
    """Opens every array of `item`, "model" or "optimizer"; scanned layers stay stacked.

    Raises:
        CheckpointError: jaxllm did not write the checkpoint, or it has no such item.
    """
    step = absolute_path(step)
    about, items = read_step(step)
    if item not in items:
        raise CheckpointError(f"it has no {item}", step)
    arrays = open_stored(step, about, item, sorted(items[item]))
    return {_key(item, path): array for path, array in arrays.items()}


def open_step(step: Path) -> dict[Key, StoredArray | StoredLayer]:
    """Opens every array of a checkpoint, stacked layers as one array per layer."""
    stored = {**open_arrays(step, "model"), **open_arrays(step, "optimizer")}
    return {
        (kind, layer_name): array if layer is None else StoredLayer(array, layer)
        for (kind, name), array in stored.items()
        for layer_name, layer in unstack_name(name)
    }


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
