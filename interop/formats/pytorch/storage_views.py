"""Tensors as views of PyTorch storages: dtypes, shapes and strides, and the checks of their bounds.

A storage is a flat block of numbers; several tensors may be views of one storage.
"""

import math
import reprlib
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxllm.interop.formats.stored_tensor import CheckpointError, checked_shape

# The dtype of each storage class.
STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
}
# Newer dtypes have no storage class: the tensor names its dtype and views a storage of bytes.
LATER_DTYPES: dict[str, np.dtype] = {
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}
LATER_NAMES = {dtype: name for name, dtype in LATER_DTYPES.items()}

WRITABLE_DTYPES = frozenset(STORAGE_NAMES | LATER_NAMES)


class Storage(NamedTuple):
    """A block of numbers stored outside the pickle: `size` elements of `dtype`, named `key`."""

    dtype: np.dtype
    key: str
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return self.size * self.dtype.itemsize


class View(NamedTuple):
    """A tensor as a view of a storage: `offset` and `strides` count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are in C order without gaps."""
        expected = c_strides(self.shape)
        return 0 in self.shape or all(
            size == 1 or stride == step
            for size, stride, step in zip(self.shape, self.strides, expected, strict=True)
        )


def view_of(arguments: tuple[object, ...]) -> View:
    """Returns the view that a pickled tensor describes.

    Args:
        arguments: those of `torch._utils._rebuild_tensor_v2` or `_v3`.

    Raises:
        CheckpointError: the arguments do not describe a view that lies within its storage.
    """
    match arguments:
        case (Storage() as storage, offset, sizes, steps, _, _, *rest):
            pass
        case _:
            raise CheckpointError("is not a view of a storage")
    dtype = storage.dtype
    if rest and isinstance(rest[0], str):  # the dtype, which `_rebuild_tensor_v3` adds
        dtype = LATER_DTYPES.get(str(rest.pop(0)), dtype)
    if any(rest):  # metadata says that the tensor's values differ from those in its storage
        raise CheckpointError("is lazily conjugated or negated: resolve it before saving")
    shape = checked_shape(sizes, dtype)
    start, strides = _checked_place(offset, steps, len(shape))
    reach = [stride * (size - 1) for size, stride in zip(shape, strides, strict=True)]
    end = start + (0 if 0 in shape else sum(reach) + 1)
    if end * dtype.itemsize > storage.nbytes:
        raise CheckpointError(
            f"shape {list(shape)} with offset {start} and strides {list(strides)} reaches "
            f"element {end} of a storage of {storage.nbytes // dtype.itemsize}"
        )
    return View(storage, dtype, start, shape, strides)


def _checked_place(offset: object, strides: object, rank: int) -> tuple[int, tuple[int, ...]]:
    match (offset, strides):
        case (int(start), tuple(steps)) if len(steps) == rank:
            if all(type(number) is int and number >= 0 for number in (start, *steps)):
                return start, steps
    raise CheckpointError(
        f"offset {reprlib.repr(offset)} and strides {reprlib.repr(strides)} are not valid for "
        f"{rank} dimensions"
    )


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides of an array in C order, in elements, as PyTorch counts them.

    A dimension of size 0 counts as 1.
    """
    sizes = [max(size, 1) for size in shape]
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
