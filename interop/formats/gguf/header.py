"""Headers of GGUF files: their fields, and the place of each tensor.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length is checked
against the file before it is used, so that no file takes long to refuse.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.untrusted.substitutes import check_is_content, cut_short

MAGIC, VERSIONS = b"GGUF", (2, 3)
# By the number of a type in the file.
NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
STRING, ARRAY, UINT32, UINT64 = 8, 9, 4, 10
ALIGNMENT, DEFAULT_ALIGNMENT = "general.alignment", 32
MOST_DIMS = 4
LEAST_BYTES = 13  # of a field or a tensor in a header


class TensorInfo(NamedTuple):
    """A tensor as the header lists it: its type's number, its shape in C order, its place."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


class Header(NamedTuple):
    """The fields of a GGUF file by their dotted names, and its tensors."""

    fields: dict[str, Any]  # arrays of numbers are NumPy arrays, those of texts are lists
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> Header:
    """Reads the header of a GGUF file.

    Raises:
        CheckpointError: it is not such a file, it is damaged, or of another version.
    """
    check_is_content(path, is_binary=True)
    try:
        with path.open("rb") as stream:
            return _read(_Cursor(stream, path.stat().st_size))
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def _read(cursor: "_Cursor") -> Header:
    if (magic := cursor.take(4)) != MAGIC:
        raise CheckpointError(f"it is not a GGUF file: it begins with {magic!r}")
    if (version := cursor.number(UINT32)) not in VERSIONS:
        raise CheckpointError(f"GGUF version {version} is not one of {VERSIONS}")
    num_tensors, num_fields = cursor.count(LEAST_BYTES), cursor.count(LEAST_BYTES)
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        name = cursor.text()
        if name in fields:
            raise CheckpointError(f"field {name!r} occurs twice")
        fields[name] = cursor.value(cursor.number(UINT32))
    tensors = [_read_info(cursor) for _ in range(num_tensors)]
    if len({info.name for info in tensors}) < num_tensors:
        raise CheckpointError("the name of a tensor occurs twice")
    alignment = fields.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if not (type(alignment) is int and alignment > 0):
        raise CheckpointError(f"{ALIGNMENT}={alignment!r} is not a number of bytes")
    start = -(-cursor.place // alignment) * alignment
    return Header(fields, tuple(info._replace(offset=start + info.offset) for info in tensors))


def _read_info(cursor: "_Cursor") -> TensorInfo:
    name, num_dims = cursor.text(), cursor.number(UINT32)
    if num_dims > MOST_DIMS:
        raise CheckpointError(f"tensor {name!r} has {num_dims} dimensions, at most {MOST_DIMS}")
    shape = tuple(cursor.number(UINT64) for _ in range(num_dims))[::-1]  # the last one comes first
    if math.prod(max(size, 1) for size in shape) >= 2**60:
        raise CheckpointError(f"tensor {name!r} of shape {list(shape)} is larger than any array")
    return TensorInfo(name, cursor.number(UINT32), shape, cursor.number(UINT64))


class _Cursor:
    """Reads values from the beginning of a file on; a value beyond its end is an error."""

    def __init__(self, stream: BinaryIO, size: int):
        self._stream, self._size, self.place = stream, size, 0

    def take(self, count: int) -> bytes:
        found = b"" if count > self._size - self.place else self._stream.read(count)
        if len(found) < count:
            raise cut_short(self._size)
        self.place += count
        return found

    def number(self, kind: int) -> Any:
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def count(self, least_bytes: int) -> int:
        """Reads the number of elements that follow, each of at least so many bytes."""
        (count,) = struct.unpack("<Q", self.take(8))
        if count * least_bytes > self._size - self.place:
            raise CheckpointError(
                f"{count:,} elements do not fit into {self._size:,} bytes: damaged or cut short"
            )
        return int(count)

    def text(self) -> str:
        try:
            return self.take(self.count(1)).decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"the text before byte {self.place:,} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(kind)
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise CheckpointError(f"a field has the unknown type {kind}")
        of = self.number(UINT32)
        if of == STRING:
            return [self.text() for _ in range(self.count(8))]
        if of not in NUMBERS:
            raise CheckpointError(f"arrays of type {of} are not supported")
        dtype = np.dtype(NUMBERS[of])
        return np.frombuffer(self.take(self.count(dtype.itemsize) * dtype.itemsize), dtype)
