"""A tensor that several files hold in chunks, each of them a box of it."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxllm.interop.rules.boxes import Box, Range, box_shape, intersect, relative, slices

from .stored_tensor import CheckpointError, StoredTensor


class Chunk(NamedTuple):
    """A box of a tensor: where it begins, and where it lies."""

    offsets: tuple[int, ...]
    tensor: StoredTensor

    @property
    def box(self) -> list[Range]:
        """The range of each dimension."""
        pairs = zip(self.offsets, self.tensor.shape, strict=True)
        return [(offset, offset + size) for offset, size in pairs]


@dataclasses.dataclass(frozen=True)
class ShardedTensor:
    """A tensor in chunks that cover it, and do not overlap; `path` is what says where they lie.

    Stands where a `StoredTensor` may, but that it lies in no one place.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    path: Path
    chunks: tuple[Chunk, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in C order."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, name: str, start: int, count: int) -> "ShardedTensor":
        """The tensor, under another name, of `count` rows from `start` on."""
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
        """The numbers of a box, from those chunks that have some of them."""
        out = np.empty(box_shape(box), self.dtype)
        for chunk in self.chunks:
            if (wanted := intersect(box, chunk.box)) is not None:
                part = chunk.tensor.read(relative(wanted, chunk.box))
                out[slices(relative(wanted, box))] = part
        return out


def join(name: str, shape: tuple[int, ...], path: Path, chunks: Sequence[Chunk]) -> ShardedTensor:
    """The tensor of these chunks.

    Raises CheckpointError unless they are of one dtype, cover it, and do not overlap.
    """
    held = [chunk for chunk in chunks if 0 not in chunk.tensor.shape]
    dtypes = {chunk.tensor.dtype for chunk in chunks}
    if len(dtypes) != 1:
        names = ", ".join(sorted(dtype.name for dtype in dtypes)) or "none"
        raise CheckpointError(f"{name}: its chunks should be of one dtype, not {names}")
    low = np.array([chunk.offsets for chunk in held]).reshape(len(held), len(shape))
    size = np.array([chunk.tensor.shape for chunk in held]).reshape(low.shape)
    if (low < 0).any() or (low + size > np.array(shape)).any():
        raise CheckpointError(f"{name}: a chunk reaches beyond the shape {list(shape)}")
    high = low + size
    meet = (low[:, None] < high[None]) & (low[None] < high[:, None])
    if int(meet.all(-1).sum()) != len(held):  # each meets itself
        raise CheckpointError(f"{name}: its chunks overlap")
    found, wanted = int(size.prod(-1).sum()), math.prod(shape)
    if found != wanted:
        raise CheckpointError(f"{name}: its chunks have {found} of {wanted} elements")
    return ShardedTensor(name, dtypes.pop(), shape, path, tuple(held))
