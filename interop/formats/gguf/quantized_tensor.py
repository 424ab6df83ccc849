"""Tensors of GGUF files, decoded while they are read: blocks of small integers with their scales.

The package `gguf` of llama.cpp decodes them, as it does for transformers.
"""

import math
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import MissingPackageError
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.untrusted.substitutes import cut_short

from .header import Header, TensorInfo

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class QuantizedTensor(StoredTensor):
    """A tensor that is stored in blocks, and read as float32.

    What a `StoredTensor` says about bytes is about those of the decoded elements; `offset` is the
    place of the blocks.

    Attributes:
        kind: the number of the blocks' type.
        first: the first of the decoded elements that belong to it.
        head_dim: if not 0, the rows are heads of this size whose rotated pairs are adjacent; they
            are read as Hugging Face has them, half a head apart.
        added: what was added to each element before it was stored.
    """

    kind: int = 0
    first: int = 0
    head_dim: int = 0
    added: float = 0.0

    def rows(self, name: str, start: int, count: int) -> "QuantizedTensor":
        """Returns `count` rows from `start` on, as a tensor with a name of its own."""
        first = self.first + start * self.element_strides[0]
        changes: dict[str, Any] = {"name": name, "shape": (count, *self.shape[1:]), "first": first}
        return replace(self, **changes)

    def part(self, name: str, position: int) -> "QuantizedTensor":
        """Returns the part at a position of the first dimension, which it no longer has."""
        row = self.rows(name, position, 1)
        changes: dict[str, Any] = {"shape": self.shape[1:]}
        return replace(row, **changes)

    def transposed(self) -> "QuantizedTensor":
        """Returns the transpose of a matrix."""
        changes: dict[str, Any] = {
            "shape": self.shape[::-1],
            "strides": self.element_strides[::-1],
        }
        return replace(self, **changes)

    def fill(self, handle: int, into: memoryview, start: int) -> None:
        """Fills a buffer with the decoded bytes from `start` on; decodes whole blocks or heads.

        Raises:
            CheckpointError: the file ends before.
        """
        out = np.frombuffer(into, FLOAT32)
        low = self.first + start // FLOAT32.itemsize
        high = low + len(out)
        block, _ = _block_of(self.kind)
        # With heads to be reordered, `shape` is that of the whole tensor: (N H) D.
        unit = self.head_dim * math.prod(self.shape[1:]) or block
        begin, end = low // unit * unit, -(-high // unit) * unit
        decoded = self._decode(handle, begin, end)
        if self.head_dim:
            pairs = decoded.reshape(-1, self.head_dim // 2, 2, *self.shape[1:])
            decoded = pairs.swapaxes(1, 2).reshape(-1)
        if self.added:
            decoded = decoded - np.float32(self.added)
        out[:] = decoded[low - begin : high - begin]

    def _decode(self, handle: int, begin: int, end: int) -> np.ndarray:
        block, nbytes = _block_of(self.kind)
        raw = np.empty((end - begin) // block * nbytes, np.uint8)
        place, into = self.offset + begin // block * nbytes, raw.data
        while into:
            count = os.preadv(handle, [into], place)
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: tensor {self.name!r}: the file ends {len(into)} bytes early"
                )
            into, place = into[count:], place + count
        package = import_gguf()
        # In one row: of more, `dequantize` decodes sixteen at a time.
        return package.dequantize(raw[None], package.GGMLQuantizationType(self.kind)).reshape(-1)


def list_tensors(path: Path, header: Header) -> dict[str, QuantizedTensor]:
    """Returns the tensors of a GGUF file by their names in it.

    Raises:
        CheckpointError: a tensor has blocks of a type that `gguf` does not decode, or reaches
            beyond the file's end. Lists all of them.
        MissingPackageError: the package `gguf` is not installed.
    """
    size, problems, missing = path.stat().st_size, [], 0
    for info in header.tensors:
        try:
            missing = max(missing, info.offset + _stored_bytes(info) - size)
        except CheckpointError as error:
            problems += error.problems
    if missing > 0:
        problems += cut_short(size, size + missing).problems
    if problems:
        raise CheckpointError(problems, path)
    return {
        info.name: QuantizedTensor(
            info.name, FLOAT32, info.shape, path, info.offset, kind=info.kind
        )
        for info in header.tensors
    }


def import_gguf() -> Any:
    """Imports the package `gguf`. Raises MissingPackageError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise MissingPackageError(
            "GGUF files are decoded by the package gguf: pip install 'jaxllm[gguf]'"
        ) from None
    return gguf


def _block_of(kind: int) -> tuple[int, int]:
    """Returns the elements and the bytes of a block."""
    package = import_gguf()
    elements, nbytes = package.GGML_QUANT_SIZES[package.GGMLQuantizationType(kind)]
    return int(elements), int(nbytes)


@cache
def _is_decoded(kind: int) -> bool:
    """Whether `gguf` decodes blocks of a type that it knows."""
    package = import_gguf()
    try:
        blank = np.zeros((1, _block_of(kind)[1]), np.uint8)
        package.dequantize(blank, package.GGMLQuantizationType(kind))
    except NotImplementedError:
        return False
    return True


def _stored_bytes(info: TensorInfo) -> int:
    try:
        block, nbytes = _block_of(info.kind)
    except (ValueError, KeyError):
        raise CheckpointError(
            f"tensor {info.name!r} has type {info.kind}, which the installed gguf does not know: "
            "pip install --upgrade gguf"
        ) from None
    if not _is_decoded(info.kind):
        kind = import_gguf().GGMLQuantizationType(info.kind).name
        raise CheckpointError(
            f"tensor {info.name!r} has type {kind}, which the package gguf does not decode: "
            "download the model in another quantization"
        )
    row = info.shape[-1] if info.shape else 1
    if row % block:
        raise CheckpointError(
            f"tensor {info.name!r} has rows of {row} elements, not a multiple of its blocks' "
            f"{block}"
        )
    return math.prod(info.shape) // block * nbytes
