"""Arrays of a step that are read in parts, and whose digest is checked before the first part."""

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore

from jaxllm.errors import CheckpointError

from .digests import Box, part_sums, to_text, zero_sums
from .orbax_layout import DIFFERS, array_spec, chunk_bytes, reason, stored_digest


class StoredArray:
    """An array of a step, of which nothing is read before it is asked for.

    Args:
        step: the folder of the step.
        item: the item within the step, such as `model`.
        name: the array's dotted name.
        digest: what `read` checks first, by reading the whole array once; None if the step was
            written before there were digests.
        context: with a cache of chunks; by default one that holds two chunks of this array.

    Raises:
        CheckpointError: the array cannot be opened.
    """

    def __init__(
        self,
        step: Path,
        item: str,
        name: str,
        digest: str | None,
        context: tensorstore.Context | None = None,
    ):
        self._name, self._digest, self._lock = f"{item} {name}", digest, threading.Lock()
        self._step = step
        spec = array_spec(step, item, name)
        try:
            if context is None:
                # Stacked layers that were on one device share a chunk. Cached, it is read once.
                limit = 2 * chunk_bytes(tensorstore.open(spec, read=True).result())
                context = tensorstore.Context({"cache_pool": {"total_bytes_limit": limit}})
            self._store = tensorstore.open(spec, read=True, context=context).result()
        except ValueError as error:
            raise self._unreadable(error) from None

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self._store.dtype.numpy_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The full shape."""
        return tuple(self._store.shape)

    @property
    def chunk_bytes(self) -> int:
        """The size in bytes of the chunks that it is read in."""
        return chunk_bytes(self._store)

    def read(self, box: Box | None = None) -> np.ndarray:
        """Reads the array, or a part of it: `box` has a (start, stop) range per dimension.

        Raises:
            CheckpointError: the stored bytes are damaged.
        """
        self.check()
        return self._read([(0, size) for size in self.shape] if box is None else box)

    def check(self) -> None:
        """Raises CheckpointError if the array is not what was written; reads it only once."""
        with self._lock:
            if self._digest is None:
                return
            sums = zero_sums()
            for box in _chunk_boxes(self._store):
                sums += part_sums(self._read(box), box, self.shape)
            if to_text(sums) != self._digest:
                raise CheckpointError(f"{self._name} is damaged: {DIFFERS}", self._step)
            self._digest = None  # checked

    def _read(self, box: Box) -> np.ndarray:
        try:
            return np.asarray(self._store[tuple(slice(*bounds) for bounds in box)].read().result())
        except ValueError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: ValueError) -> CheckpointError:
        return CheckpointError(f"{self._name} cannot be read: {reason(error)}", self._step)


def open_arrays(
    step: Path,
    about: Mapping[str, Any],
    item: str,
    names: Iterable[str],
    context: tensorstore.Context | None = None,
) -> dict[str, StoredArray]:
    """Opens arrays of a step by name.

    Args:
        step: the folder of the step.
        about: jaxllm's own metadata of the step, which have the digests.
        item: the item within the step, such as `model`.
        names: the dotted names of the arrays.
        context: shared by all; see `StoredArray`.
    """
    return {
        name: StoredArray(step, item, name, stored_digest(about, item, name), context)
        for name in names
    }


class StoredLayer(NamedTuple):
    """One layer's slice of a stacked array; read on request."""

    stacked: StoredArray
    layer: int

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self.stacked.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's array."""
        return self.stacked.shape[1:]

    def read(self, box: Box | None = None) -> np.ndarray:
        """Reads the array, or a part of it; see `StoredArray.read`."""
        inner = [(0, size) for size in self.shape] if box is None else box
        return self.stacked.read([(self.layer, self.layer + 1), *inner])[0]


def _chunk_boxes(store: tensorstore.TensorStore) -> Iterator[Box]:
    """Yields the boxes of the chunks that an array is stored in."""
    sizes = store.chunk_layout.read_chunk.shape or ()
    starts = [range(0, n, size or n) for n, size in zip(store.shape, sizes, strict=True)]
    for corner in itertools.product(*starts):
        ends = zip(corner, sizes, store.shape, strict=True)
        yield [(low, min(low + (size or n), n)) for low, size, n in ends]
