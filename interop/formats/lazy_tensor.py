"""Arrays that are read box by box, from a file, from devices, or assembled from other arrays.

A box is one range per dimension. Reading a box brings only that box to the host.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.errors import NarrowingError
from jaxllm.interop.rules.boxes import Box, box_shape, boxes, intersect, relative, slices
from jaxllm.interop.rules.pattern import Index
from jaxllm.interop.rules.strided_copy import copy_bits
from jaxllm.interop.rules.transfer import Transfer
from jaxllm.numerics.narrowing import Zeroed, clamp
from jaxllm.sharding import spans_processes

from .sharded_tensor import ShardedTensor
from .stored_tensor import CheckpointError, StoredTensor

Read = Callable[[Box], np.ndarray]
Fill = Callable[[Box, np.ndarray], None]
Views = Callable[[Box], Iterator[tuple[Box, np.ndarray]]]


@dataclass(frozen=True)
class TensorSource:
    """An array that is not read yet: its dtype and shape, and a function that reads any box.

    Attributes:
        dtype: its dtype.
        shape: its shape.
        read: returns a box.
        into: copies a box into an array in C order; None if that takes a `read` first.
        views: yields the boxes that make up a box, each with its numbers, none of them assembled;
            None if only `read` gives numbers.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Read
    into: Fill | None = None
    views: Views | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array in C order."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def whole(self) -> Box:
        """The box of the whole array."""
        return tuple((0, size) for size in self.shape)

    def fill(self, box: Box, out: np.ndarray) -> None:
        """Copies a box into an array in C order, of the shape of the box."""
        if self.into is None:
            copy_bits(np.asarray(self.read(box)), out)
        else:
            self.into(box, out)

    def parts(self, box: Box) -> Iterable[tuple[Box, np.ndarray]]:
        """Returns the boxes that make up a box, each with its numbers."""
        return [(box, self.read(box))] if self.views is None else self.views(box)

    def payload(self, max_bytes: int, room: np.ndarray | None = None) -> Iterator[memoryview]:
        """Yields the bytes of the array in C order, at most `max_bytes` at a time.

        A caller that leaves each chunk by `with chunk:` holds no chunk while the next is read.

        Args:
            max_bytes: the most bytes of a chunk.
            room: `max_bytes` bytes to assemble each chunk in; by default in memory of its own.

        Raises:
            CheckpointError: a box that was read does not have the declared dtype or shape.
        """
        for box in boxes(self.shape, max(max_bytes // self.dtype.itemsize, 1)):
            shape = box_shape(box)
            if self.into is None or room is None:
                array = self.read(box)
            else:
                size = math.prod(shape) * self.dtype.itemsize
                self.into(box, array := room[:size].view(self.dtype).reshape(shape))
            if (array.dtype, array.shape) != (self.dtype, shape):
                declared, found = f"{self.dtype}{[*shape]}", f"{array.dtype}{[*array.shape]}"
                raise CheckpointError(f"declared as {declared}, but read as {found}")
            chunk = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            del array
            yield chunk
            del chunk

    def astype(
        self, dtype: np.dtype, zeroed: Zeroed | None = None, name: str = ""
    ) -> "TensorSource":
        """Returns the array cast to another dtype; see `cast`.

        Args:
            dtype: the dtype.
            zeroed: counts the numbers that become zero.
            name: the name of the array there.
        """
        if dtype == self.dtype:
            return self

        def read(box: Box) -> np.ndarray:
            narrow, count = cast(self.read(box), dtype)
            if zeroed is not None:
                zeroed.add(name, self.shape, count, tuple(map(tuple, box)))
            return narrow

        return TensorSource(dtype, self.shape, read)


def cast(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Casts an array, rounded to nearest; returns how many numbers became zero as well.

    Raises:
        NarrowingError: finite numbers would become infinite.
    """
    narrow, count, zeroed = clamp(array, dtype)
    if count:
        raise NarrowingError(f"overflow: {count:,} beyond the largest number of {dtype}")
    return narrow, zeroed


def find_overflows(
    sources: Mapping[str, TensorSource],
    dtype: np.dtype,
    chunk_bytes: int,
    zeroed: Zeroed | None = None,
) -> list[str]:
    """Returns a message on numbers beyond a dtype's range, and one for each array that has some.

    Args:
        sources: the arrays by name; all of them are read.
        dtype: the dtype to which they are cast.
        chunk_bytes: the most bytes to read at a time.
        zeroed: counts the numbers that become zero.
    """
    found, total = [], 0
    for name, source in sources.items():
        count, largest = 0, 0.0
        for box in boxes(source.shape, max(chunk_bytes // source.dtype.itemsize, 1)):
            _, here, lost = clamp(array := source.read(box), dtype)
            if zeroed is not None:
                zeroed.add(name, source.shape, lost, tuple(box))
            if here:
                finite = np.abs(array[np.isfinite(array)]).astype(np.float64)
                count, largest = count + here, max(largest, finite.max())
        if count:
            size = math.prod(source.shape)
            found.append(f"{name}: {count:,} of {size:,}, up to {largest:.6g} in magnitude")
        total += count
    limit = float(ml_dtypes.finfo(dtype).max)
    summary = f"overflow: {total:,} beyond {limit:.6g}, the largest number of {dtype}"
    return [summary, *found] if found else []


def from_array(array: np.ndarray) -> TensorSource:
    """Wraps an array in host memory."""
    return TensorSource(array.dtype, array.shape, lambda box: array[slices(box)])


def from_stored(tensor: StoredTensor | ShardedTensor) -> TensorSource:
    """Wraps a tensor stored in one file or in several."""
    return TensorSource(tensor.dtype, tensor.shape, tensor.read)


def from_jax(array: jax.Array | np.ndarray) -> TensorSource:
    """Wraps an array on devices.

    If the array spans processes, all of them must read the same boxes in the same order: each
    read is a gather.
    """
    if isinstance(array, np.ndarray):
        return from_array(array)
    dtype = np.dtype(array.dtype)
    if spans_processes(array):
        return TensorSource(dtype, array.shape, partial(_gather, array))
    views = _shard_views(array)
    return TensorSource(dtype, array.shape, partial(_assemble, views, dtype), views=views)


def _shard_views(array: jax.Array) -> Views:
    """Returns a function that finds boxes in this process's shards; replicas are read once."""
    shards = {}
    for shard in array.addressable_shards:
        parts = zip(shard.index, array.shape, strict=True)
        shards[tuple(part.indices(size)[:2] for part, size in parts)] = shard.data

    def views(box: Box) -> Iterator[tuple[Box, np.ndarray]]:
        for held, data in shards.items():
            if (wanted := intersect(box, held)) is not None:
                yield wanted, _on_host(data, relative(wanted, held))

    return views


def _assemble(views: Views, dtype: np.dtype, box: Box) -> np.ndarray:
    """Returns a box; a copy only if it is in several parts."""
    out = None
    for place, part in views(box):
        if tuple(place) == tuple(box):
            return part
        if out is None:
            out = np.empty(box_shape(box), dtype)
        out[slices(relative(place, box))] = part
    return np.empty(box_shape(box), dtype) if out is None else out


def _on_host(data: jax.Array, box: Box) -> np.ndarray:
    """Copies a box of an array on one device to the host.

    An accelerator slices the array itself, so that no more than the box is transferred.
    """
    if data.platform() == "cpu" or list(box) == [(0, size) for size in data.shape]:
        return np.asarray(data)[slices(box)]
    cut = _cutter(box_shape(box))
    return np.asarray(cut(data, [low for low, _ in box]))


@lru_cache(maxsize=1024)
def _cutter(sizes: tuple[int, ...]) -> Callable[[jax.Array, list[int]], jax.Array]:
    return jax.jit(lambda data, starts: jax.lax.dynamic_slice(data, starts, sizes))


def _gather(array: jax.Array, box: Box) -> np.ndarray:
    """Gathers a box of an array that spans processes; every process must call it."""
    gather = _gatherer(array.sharding, array.shape, box_shape(box))
    return np.asarray(gather(array, [low for low, _ in box]).addressable_data(0))


@lru_cache(maxsize=1024)
def _gatherer(
    sharding: NamedSharding, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> Callable[[jax.Array, list[int]], jax.Array]:
    """Compiles a gather: slices the unsharded dimensions, gathers, then slices the others."""
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    is_split = [a != b for a, b in zip(sharding.shard_shape(shape), shape, strict=True)]
    first = [shape[i] if is_split[i] else sizes[i] for i in range(len(shape))]

    def gather(array: jax.Array, starts: list[jax.Array]) -> jax.Array:
        here = [0 if split else start for split, start in zip(is_split, starts, strict=True)]
        cut = jax.lax.dynamic_slice(array, here, first)
        cut = jax.lax.with_sharding_constraint(cut, everywhere)
        rest = [start if split else 0 for split, start in zip(is_split, starts, strict=True)]
        return jax.lax.dynamic_slice(cut, rest, sizes)

    return jax.jit(gather, out_shardings=everywhere)


def transfer_tensor(
    transfer: Transfer, index: Index, sources: Mapping[str, TensorSource]
) -> TensorSource:
    """Returns the target tensor of a rule at `index`, read through the rule from `sources`."""
    shape = transfer.target.shape(transfer.sizes)
    named = {axis: index.get(axis, 0) for axis in transfer.source.name_axes}
    dtype = sources[transfer.source.format_name(named, transfer.sizes)].dtype

    def parts(name: str, part: Box) -> Iterable[tuple[Box, np.ndarray]]:
        return sources[name].parts(part)

    return TensorSource(
        dtype,
        shape,
        lambda box: transfer.read(index, box, parts, dtype),
        lambda box, out: transfer.fill(index, box, parts, out),
    )


def concatenate_rows(parts: Sequence[TensorSource]) -> TensorSource:
    """Returns a fused tensor: the parts concatenated along their first dimension."""
    first, stops = parts[0], np.cumsum([part.shape[0] for part in parts])

    def rows_of(box: Box) -> Iterator[tuple[TensorSource, Box]]:
        (low, high), *rest = box
        for part, stop in zip(parts, map(int, stops), strict=True):
            start = stop - part.shape[0]
            if low < stop and start < high:
                yield part, [(max(low, start) - start, min(high, stop) - start), *rest]

    def read(box: Box) -> np.ndarray:
        found = [part.read(rows) for part, rows in rows_of(box)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def into(box: Box, out: np.ndarray) -> None:
        begin = 0
        for part, rows in rows_of(box):
            end = begin + rows[0][1] - rows[0][0]
            part.fill(rows, out[begin:end])
            begin = end

    return TensorSource(first.dtype, (int(stops[-1]), *first.shape[1:]), read, into)
