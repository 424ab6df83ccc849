"""Checks tensors that are stored more than once: tied weights, norms of model-parallel shards."""

from pathlib import Path

import numpy as np

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

from .plan import Plan
from .streaming.chunk_reader import Reader, chunks
from .streaming.stream import chunk_bytes


def check_copies(plan: Plan, path: Path) -> None:
    """Checks that copies equal their originals bit for bit; only the originals are loaded.

    Raises:
        CheckpointError: some copies differ. Lists all of them.
    """
    limit = chunk_bytes(plan.max_ram)
    if problems := [
        f"{copy} should be a copy of {original} but differs from it"
        for copy, original in plan.copies()
        if not have_same_bits(plan.tensors[copy], plan.tensors[original], limit)
    ]:
        raise CheckpointError(problems, path)


def have_same_bits(one: StoredTensor, other: StoredTensor, max_bytes: int) -> bool:
    """Returns whether two tensors are equal bit for bit.

    Args:
        one: a tensor.
        other: the tensor to compare it with.
        max_bytes: the most bytes of each to read at a time.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    bits = np.dtype(f"u{one.dtype.itemsize}")
    with Reader() as first, Reader() as second:
        return all(
            np.array_equal(first.read(one, box).view(bits), second.read(other, box).view(bits))
            for box in chunks(one, max_bytes)
        )
