"""Tensors of checkpoint files: their place in a file, and the error for damaged checkpoints."""

import json
import math
import reprlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import ml_dtypes
import numpy as np

from jaxllm.errors import CheckpointError
from jaxllm.interop.rules.boxes import Box, slices

# By their names in safetensors files. Those of 4 and 6 bits are left out: they fill no whole bytes.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
DTYPE_NAMES: dict[np.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

_MAX_RANK = 64  # NumPy's own limit

# Every open map holds a file handle, so the tensors of one file share one.
_maps: WeakValueDictionary[tuple[int, int, int, int], np.memmap] = WeakValueDictionary()


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor in a file; none of its data is read.

    Attributes:
        name: the tensor's name.
        dtype: its dtype.
        shape: its shape.
        path: the file.
        offset: bytes from the start of the file.
        strides: of each dimension, in elements; None means C order.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    path: Path
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in C order; a strided tensor may span fewer or more in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def element_strides(self) -> tuple[int, ...]:
        """The stride of each dimension in the file, in elements."""
        if self.strides is not None:
            return self.strides
        return tuple(math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))

    def rows(self, name: str, start: int, count: int) -> "StoredTensor":
        """Returns `count` rows from `start` on, as a tensor with a name of its own."""
        offset = self.offset + start * self.element_strides[0] * self.dtype.itemsize
        return replace(self, name=name, shape=(count, *self.shape[1:]), offset=offset)

    def open(self) -> np.ndarray:
        """Returns a read-only memory map of the tensor; pages are read when they are touched."""
        strides = self.strides and tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.ndarray(self.shape, self.dtype, _file_bytes(self.path), self.offset, strides)

    def read(self, box: Box) -> np.ndarray:
        """Reads a box: one range for each dimension."""
        return self.open()[slices(box)]


def checked_shape(shape: object, dtype: np.dtype) -> tuple[int, ...]:
    """Returns the shape that a file declares. Raises CheckpointError if no array can have it."""
    if not isinstance(shape, list | tuple) or not all(
        type(size) is int and size >= 0 for size in shape
    ):
        raise CheckpointError(f"shape {reprlib.repr(shape)} is not a list of sizes")
    if len(shape) > _MAX_RANK:
        raise CheckpointError(f"{len(shape)} dimensions, at most {_MAX_RANK} are allowed")
    # NumPy rejects an empty array whose other sizes overflow.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
        raise CheckpointError(f"shape {reprlib.repr(shape)} is larger than any array")
    return tuple(shape)


def parse_json(text: bytes) -> dict[str, Any]:
    """Parses a JSON object. Raises CheckpointError if it is not one, or if a key occurs twice.

    Python's `json` alone would silently keep only the last of two equal keys.
    """
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        parsed = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON: {error}") from None
    if repeated:
        raise CheckpointError([f"key {key!r} occurs more than once" for key in repeated])
    if not isinstance(parsed, dict):
        raise CheckpointError("the JSON is not an object")
    return parsed


def _file_bytes(path: Path) -> np.memmap:
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    mapped = _maps.get(key)
    if mapped is None:
        mapped = _maps[key] = np.memmap(path, np.uint8, mode="r")
    return mapped
