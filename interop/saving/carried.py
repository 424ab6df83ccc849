"""Tensors outside of the model, such as heads for other tasks: exports take them along."""

import json
import logging
from pathlib import Path

from jaxllm.checkpoint_origin import CARRIED, Origin
from jaxllm.errors import CheckpointError
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_stored
from jaxllm.interop.loading.checkpoint import open_checkpoint
from jaxllm.interop.loading.checkpoint_dir import Tensors
from jaxllm.interop.loading.name_folding import in_short

logger = logging.getLogger(__name__)


def carried_by(origin: Origin | None) -> list[str]:
    """Returns the names of the tensors that a model's origin had beside the model."""
    return [] if origin is None else json.loads(origin.carried)


def find_carried(origin: Origin) -> dict[str, TensorSource]:
    """Returns the tensors that a model's origin had beside the model, by their stored names.

    They are read from the checkpoint itself, or from the copy that a native checkpoint keeps.

    Raises:
        CheckpointError: the checkpoint no longer has them.
    """
    names, stored = carried_by(origin), _open(origin)
    if missing := [name for name in names if name not in stored]:
        raise CheckpointError(
            f"{origin.checkpoint}, which the model came from, no longer has {in_short(missing)}"
        )
    return {name: from_stored(stored[name]) for name in names}


def _open(origin: Origin) -> Tensors:
    kept = Path(origin.directory) / CARRIED
    if kept.is_file():
        return safetensors_file.read_header(kept)
    try:
        return open_checkpoint(Path(origin.checkpoint)).tensors
    except CheckpointError:
        return {}


def keep_carried(origin: Origin | None, folder: Path) -> None:
    """Writes a copy of these tensors into the folder where a native checkpoint keeps its origin.

    Logs a warning if the checkpoint that the model came from no longer has them.
    """
    if origin is None or not carried_by(origin):
        return
    try:
        carried = find_carried(origin)
    except CheckpointError as error:
        logger.warning("%s: written without them", error)
        return
    write_files(folder, [safetensors_file.lay_out(CARRIED, carried)], carried)
