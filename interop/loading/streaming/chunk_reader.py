"""Reads tensors from files chunk by chunk, into a reused buffer."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor, contiguous_runs, element_span
from jaxllm.interop.rules.boxes import Box, Range, box_shape, boxes

PAGE_BYTES = 4096  # the disk reads whole pages: skipping less is not worth another request


def chunks(tensor: StoredTensor, max_bytes: int) -> Iterator[Box]:
    """Splits a tensor into boxes of at most `max_bytes`, each contiguous in its file."""
    shape, strides = tensor.shape, tensor.element_strides
    order = sorted(range(len(shape)), key=lambda dim: -strides[dim])
    # A view of a larger tensor has gaps, which are read too and count towards the limit.
    density = min(math.prod(shape) / element_span(shape, strides), 1) if math.prod(shape) else 1
    elements = max(int(max_bytes // tensor.dtype.itemsize * density), 1)
    for box in boxes([shape[dim] for dim in order], elements):
        yield tuple(box[order.index(dim)] for dim in range(len(shape)))


class Reader:
    """Reads chunks of tensors one at a time; each overwrites the previous one."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.handle = -1
        self.memory = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, tensor: StoredTensor, box: Box, wanted: Sequence[Box] = ()) -> np.ndarray:
        """Reads a box of a tensor into the buffer and returns a view of it.

        A tensor in memory returns its own box, which needs no buffer.

        Args:
            tensor: the tensor.
            box: the box to read.
            wanted: the parts of the box that are needed, relative to it; other parts may be left
                out and then hold arbitrary data. By default all of the box is read.

        Raises:
            CheckpointError: the file ends before the box does.
        """
        if (held := tensor.in_memory(box)) is not None:
            return held
        itemsize, strides = tensor.dtype.itemsize, tensor.element_strides
        shape = box_shape(box)
        nbytes = element_span(shape, strides) * itemsize
        if self.memory.nbytes < nbytes:
            self.memory = np.empty(nbytes, np.uint8)
        first = sum(low * stride for (low, _), stride in zip(box, strides, strict=True))
        self._open(tensor.path)
        for start, stop in _byte_runs(shape, strides, itemsize, wanted):
            tensor.fill(self.handle, self.memory[start:stop].data, first * itemsize + start)
        steps = [stride * itemsize for stride in strides]
        return np.ndarray(shape, tensor.dtype, self.memory.data, 0, steps)

    def _open(self, path: Path) -> None:
        if path != self.path:
            self._close()
            self.handle, self.path = os.open(path, os.O_RDONLY), path

    def _close(self) -> None:
        if self.path is not None:
            os.close(self.handle)
            self.path = None


def _byte_runs(
    shape: Sequence[int], strides: Sequence[int], itemsize: int, wanted: Sequence[Box]
) -> list[Range]:
    """Returns the byte ranges of a chunk, relative to its first byte, that cover `wanted`."""
    count = sum(math.prod(box_shape(box)) for box in wanted)
    span = element_span(shape, strides)
    if not wanted or count >= math.prod(shape) == span:
        return [(0, span * itemsize)]
    found = [contiguous_runs(box, strides) for box in wanted]
    starts = np.concatenate([starts for starts, _ in found]) * itemsize
    stops = starts + np.repeat([row for _, row in found], [len(s) for s, _ in found]) * itemsize
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], np.maximum.accumulate(stops[order])
    is_far = starts[1:] - stops[:-1] >= PAGE_BYTES
    firsts, lasts = np.append(True, is_far), np.append(is_far, True)
    return list(zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True))
