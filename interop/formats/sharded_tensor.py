"""Tensors stored in chunks that may lie in several files, each chunk a box of the tensor."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from jaxllm.interop.rules.boxes import Box, Range, box_shape, intersect, relative, slices

from .stored_tensor import CheckpointError, StoredTensor


class Chunk(NamedTuple):
    """One stored box of a tensor: where it begins in the tensor, and where it is stored."""

    offsets: tuple[int, ...]
    tensor: StoredTensor

    @property
    def box(self) -> list[Range]:
        """The box within the whole tensor."""
        pairs = zip(self.offsets, self.tensor.shape, strict=True)
        return [(offset, offset + size) for offset, size in pairs]


@dataclasses.dataclass(frozen=True)
class ShardedTensor:
    """A tensor in chunks that cover it and do not overlap.

    It offers what `StoredTensor` does, but reads no bytes of a single file. `path` is the file that
    lists the chunks.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    path: Path
    chunks: tuple[Chunk, ...]

    offset: ClassVar[int] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in C order."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def element_strides(self) -> tuple[int, ...]:
        """The stride of each dimension as the tensor is read: in C order."""
        return tuple(math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))

    @property
    def is_collective(self) -> bool:
        """Whether all processes must read the same boxes in the same order."""
        return any(chunk.tensor.is_collective for chunk in self.chunks)

    def rows(self, name: str, start: int, count: int) -> "ShardedTensor":
        """Returns `count` rows from `start` on, as a tensor with a name of its own."""
        return dataclasses.replace(
            self,
            name=name,
            shape=(count, *self.shape[1:]),
            chunks=tuple(self._cut(start, start + count)),
        )

    def _cut(self, start: int, stop: int) -> Iterator[Chunk]:
        for offsets, tensor in self.chunks:
            low, high = max(offsets[0], start), min(offsets[0] + tensor.shape[0], stop)
            if low < high:
                rows = tensor.rows(tensor.name, low - offsets[0], high - low)
                yield Chunk((low - start, *offsets[1:]), rows)

    def read(self, box: Box) -> np.ndarray:
        """Reads a box from the chunks that intersect it."""
        out = np.empty(box_shape(box), self.dtype)
        for chunk in self.chunks:
            if (wanted := intersect(box, chunk.box)) is not None:
                part = chunk.tensor.read(relative(wanted, chunk.box))
                out[slices(relative(wanted, box))] = part
        return out

    def in_memory(self, box: Box) -> np.ndarray:
        """Returns a box, see `read`."""
        return self.read(box)


def join(name: str, shape: tuple[int, ...], path: Path, chunks: Sequence[Chunk]) -> ShardedTensor:
    """Returns the tensor that consists of `chunks`.

    Args:
        name: the tensor's name.
        shape: its shape.
        path: the file that lists the chunks.
        chunks: its chunks, in any order.

    Raises:
        CheckpointError: the chunks have several dtypes, overlap, or do not cover the tensor.
    """
    held = [chunk for chunk in chunks if 0 not in chunk.tensor.shape]
    dtypes = {chunk.tensor.dtype for chunk in chunks}
    if len(dtypes) != 1:
        names = ", ".join(sorted(dtype.name for dtype in dtypes)) or "none"
        raise CheckpointError(f"{name}: its chunks must have one dtype, not {names}")
    low = np.array([chunk.offsets for chunk in held]).reshape(len(held), len(shape))
    size = np.array([chunk.tensor.shape for chunk in held]).reshape(low.shape)
    if (low < 0).any() or (low > np.array(shape) - size).any():  # `low + size` may overflow
        raise CheckpointError(f"{name}: a chunk reaches beyond the shape {list(shape)}")
    high = low + size
    meet = np.ones((len(held), len(held)), bool)
    for begin, end in zip(low.T, high.T, strict=True):
        meet &= (begin[:, None] < end) & (begin < end[:, None])
    if int(meet.sum()) != len(held):  # each chunk meets only itself
        raise CheckpointError(f"{name}: its chunks overlap")
    found, wanted = int(size.prod(-1).sum()), math.prod(shape)
    if found != wanted:
        raise CheckpointError(f"{name}: its chunks have {found} of {wanted} elements")
    return ShardedTensor(name, dtypes.pop(), shape, path, tuple(held))
