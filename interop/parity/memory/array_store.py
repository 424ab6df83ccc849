"""Stores for arrays until they are compared: in memory or, for larger models, on disk."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import UserError

from .malloc import map_large_arrays

SEGMENT = 2**28  # bytes per file; every file takes a file descriptor
ALIGNMENT = 64  # bytes, the same as for arrays in memory

ArrayStore = Callable[[np.ndarray], np.ndarray]  # stores an array and returns the stored one


def in_memory(array: np.ndarray) -> np.ndarray:
    """Returns the array itself: the store for models that fit into memory."""
    return array


def on_disk(folder: Path, segment: int = SEGMENT) -> ArrayStore:
    """Returns a store of memory-mapped files, which the system pages out when memory is scarce.

    The files have no names. Each disappears with the last of its arrays, or with the process. The
    stored arrays are writable.

    Args:
        folder: where the files are.
        segment: the least size of a file in bytes.

    Raises:
        UserError: `folder` is not a folder. The store itself raises OSError if the disk is full.
    """
    if not folder.is_dir():
        raise UserError(f"scratch={str(folder)!r} is not a folder; give an existing one")
    map_large_arrays()
    free = np.empty(0, np.uint8)  # the unused rest of the last file

    def keep(array: np.ndarray) -> np.ndarray:
        nonlocal free
        if free.nbytes < array.nbytes:
            free = _new_file(folder, max(segment, array.nbytes))
        kept = free[: array.nbytes].view(array.dtype).reshape(array.shape)
        free = free[math.ceil(array.nbytes / ALIGNMENT) * ALIGNMENT :]
        kept[...] = array
        return kept

    return keep


def _new_file(folder: Path, num_bytes: int) -> np.ndarray:
    """Maps a new file of `num_bytes` as an array of bytes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        # Reserves the space: writing to a mapped page that the disk has no room for would kill the
        # process.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return np.asarray(np.memmap(file, np.uint8, "r+", shape=(num_bytes,)))


@contextmanager
def parameters_on(store: ArrayStore) -> Iterator[None]:
    """Within this context, every parameter that a PyTorch module gets is stored in float32."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def move(module: Any, name: str, param: Any) -> None:
        if param.device.type == "cpu" and param.is_floating_point():
            param.data = torch.from_numpy(store(param.detach().float().numpy()))

    hook = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        hook.remove()
