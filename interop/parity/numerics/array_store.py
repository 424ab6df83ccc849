"""Where arrays are kept until they are compared: in memory, or of models larger than it on disk."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import UserError

from .malloc import return_freed_memory

SEGMENT = 2**28  # bytes of a file; each takes a file descriptor
ALIGNMENT = 64  # bytes, as of arrays in memory

Shelf = Callable[[np.ndarray], np.ndarray]  # takes an array, returns the one to go on with


def in_memory(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


def on_disk(folder: Path, segment: int = SEGMENT) -> Shelf:
    """A shelf of files in a folder, which the system reads and writes as memory gets scarce.

    They have no names, and are gone with the last of their arrays or with the process. Its arrays
    are writable. Raises UserError for what is no folder; the shelf, OSError if the disk is full.
    """
    if not folder.is_dir():
        raise UserError(f"scratch={str(folder)!r} is not a folder")
    return_freed_memory()
    room = np.empty(0, np.uint8)  # what is left of the last file

    def keep(array: np.ndarray) -> np.ndarray:
        nonlocal room
        if room.nbytes < array.nbytes:
            room = _file(folder, max(segment, array.nbytes))
        kept = room[: array.nbytes].view(array.dtype).reshape(array.shape)
        room = room[math.ceil(array.nbytes / ALIGNMENT) * ALIGNMENT :]
        kept[...] = array
        return kept

    return keep


def _file(folder: Path, num_bytes: int) -> np.ndarray:
    """A new file as an array of bytes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        # Writing to what the disk has no room for would end the process.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return np.asarray(np.memmap(file, np.uint8, "r+", shape=(num_bytes,)))


@contextmanager
def parameters_on(shelf: Shelf) -> Iterator[None]:
    """Parameters that modules of PyTorch are given in here lie on the shelf, in float32."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def move(module: Any, name: str, param: Any) -> None:
        if param.device.type == "cpu" and param.is_floating_point():
            param.data = torch.from_numpy(shelf(param.detach().float().numpy()))

    hook = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        hook.remove()
