"""Tensors of checkpoint files: their place in a file, and the error for damaged checkpoints."""

import math
import os
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import ml_dtypes
import numpy as np

from jaxllm.config import Dtype
from jaxllm.errors import CheckpointError
from jaxllm.interop.rules.boxes import Box, box_shape

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

MOST_SPREAD = 2  # a box is read in one piece, if it covers no more than its size times this


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
    # Whether all processes must read the same boxes in the same order.
    is_collective: ClassVar[bool] = False

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

    def read(self, box: Box | None = None) -> np.ndarray:
        """Reads a box, by default the whole tensor.

        A memory map would be simpler, but a file that is truncated under it kills the process.

        Raises:
            CheckpointError: the file ends before the box does.
        """
        box = [(0, size) for size in self.shape] if box is None else box
        shape, strides, itemsize = box_shape(box), self.element_strides, self.dtype.itemsize
        if 0 in shape:
            return np.empty(shape, self.dtype)
        size, span = math.prod(shape), element_span(shape, strides)
        if is_dense := span <= MOST_SPREAD * size:
            first = sum(low * stride for (low, _), stride in zip(box, strides, strict=True))
            starts, length = np.array([first]), span
        else:
            starts, length = contiguous_runs(box, strides)
        memory = np.empty((len(starts), length * itemsize), np.uint8)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            for start, run in zip(starts.tolist(), memory, strict=True):
                self.fill(handle, run.data, start * itemsize)
        finally:
            os.close(handle)
        if is_dense:
            steps = [stride * itemsize for stride in strides]
            return np.ndarray(shape, self.dtype, memory.data, 0, steps)
        order = sorted(range(len(shape)), key=lambda dim: -strides[dim])  # as the runs lie
        ordered = memory.reshape(-1).view(self.dtype).reshape([shape[dim] for dim in order])
        return ordered.transpose([order.index(dim) for dim in range(len(shape))])

    def own_box(self, box: Box) -> np.ndarray | None:
        """Returns a box that the tensor reads by itself; None if its bytes lie in one file."""
        return None

    def fill(self, handle: int, into: memoryview, start: int) -> None:
        """Fills a buffer with the tensor's bytes from `start` on.

        Raises:
            CheckpointError: the file ends before.
        """
        while into:
            count = os.preadv(handle, [into], self.offset + start)
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: tensor {self.name!r}: the file ends {len(into)} bytes early"
                )
            into, start = into[count:], start + count


def main_dtype(tensors: Mapping[str, StoredTensor]) -> Dtype:
    """Returns the dtype with the most bytes, taken as the dtype that the model was saved in."""
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[dtype_on_devices(tensor.dtype).name] += tensor.nbytes
    known: tuple[Dtype, ...] = get_args(Dtype)
    return max(known, key=sizes.__getitem__)


def dtype_on_devices(stored: np.dtype, dtype: Dtype | None = None) -> np.dtype:
    """Returns the dtype of a stored tensor's array, by default as stored: float64 as float32."""
    if dtype is not None:
        return np.dtype(dtype)
    return np.dtype(np.float32) if stored == np.float64 else stored


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


def element_span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Returns the number of elements from the first to the last of a non-empty strided array."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def contiguous_runs(box: Box, strides: Sequence[int]) -> tuple[np.ndarray, int]:
    """Returns the start of each contiguous run of a box, and the number of elements in a run."""
    row, starts = 1, np.zeros(1, np.int64)
    for dim in sorted(range(len(box)), key=lambda dim: strides[dim]):
        low, high = box[dim]
        if strides[dim] == row and len(starts) == 1:
            starts, row = starts + low * row, row * (high - low)
        else:
            starts = np.add.outer(np.arange(low, high) * strides[dim], starts).ravel()
    return starts, row
