"""Where arrays are kept until they are compared: in memory, or of models larger than it on disk."""

import ctypes
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from jaxllm.errors import UserError

SEGMENT = 2**28  # bytes of a file; each takes a file descriptor
ALIGNMENT = 64  # bytes, as of arrays in memory
M_MMAP_THRESHOLD = -3  # as in malloc.h
LARGE = 2**16  # bytes

Shelf = Callable[[np.ndarray], np.ndarray]  # takes an array, returns the one to go on with


def in_memory(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


def on_disk(folder: Path) -> Shelf:
    """A shelf of files in a folder, which the system reads and writes as memory gets scarce.

    They have no names, and are gone with the last of their arrays or with the process. Its arrays
    are writable. Raises UserError for what is no folder; the shelf, OSError if the disk is full.
    """
    if not folder.is_dir():
        raise UserError(f"scratch={str(folder)!r} is not a folder")
    _give_back_what_is_freed()
    room = np.empty(0, np.uint8)  # what is left of the last file

    def keep(array: np.ndarray) -> np.ndarray:
        nonlocal room
        if room.nbytes < array.nbytes:
            room = _file(folder, max(SEGMENT, array.nbytes))
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


def _give_back_what_is_freed() -> None:
    """Has glibc return large arrays to the system at once, where memory is glibc's to manage.

    By default it keeps them for later, in pieces that later ones do not fit into: more of them than
    are ever in use, by the size of the model.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


@contextmanager
def parameters_on(shelf: Shelf) -> Iterator[None]:
    """Parameters that modules of PyTorch are given in here lie on the shelf, in float32."""
    import torch

    register = torch.nn.Module.register_parameter

    def register_on(module: Any, name: str, param: Any) -> None:
        if param is not None and param.device.type == "cpu" and param.is_floating_point():
            param.data = torch.from_numpy(shelf(param.detach().float().numpy()))
        register(module, name, param)

    with mock.patch.object(torch.nn.Module, "register_parameter", register_on):
        yield
