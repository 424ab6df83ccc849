"""Streams stored tensors into device arrays, in file order and within bounded host memory.

A few threads each read one chunk at a time and copy it into every array that needs part of it. The
number of threads bounds the memory in flight, and data that several devices hold is read once.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.axis_ranges import Ranges, find_box, select_ranges
from jaxllm.interop.rules.boxes import Box, relative
from jaxllm.interop.rules.pattern import Index
from jaxllm.interop.rules.transfer import Piece, Transfer

from .chunk_reader import Reader, chunks
from .device_buffers import Part, ShardBuffers

THREADS = 4
COPIES = 4  # copies of a chunk: as read, in the array's order, and as much again in the allocator
MAX_CHUNK_BYTES = 8 << 20  # a larger chunk would leave the cache between reading and copying


class PlannedRead(NamedTuple):
    """A stored tensor to be read, and the rule that relates it to the model's arrays.

    Attributes:
        tensor: the stored tensor.
        transfer: the exporting direction of the rule: from model arrays to the stored tensor.
        position: the positions of the axes in the stored tensor's name.
    """

    tensor: StoredTensor
    transfer: Transfer
    position: Index


def stream(
    reads: Iterable[PlannedRead],
    arrays: Mapping[str, ShardBuffers],
    max_ram: int,
    *,
    threads: int = THREADS,
) -> None:
    """Reads the parts of stored tensors that the arrays' shards need, and fills the shards.

    Args:
        reads: the stored tensors and their rules.
        arrays: the arrays to fill, by name.
        max_ram: host memory for chunks in flight, in bytes, divided equally between the threads.
        threads: the number of reading threads.

    Raises:
        CheckpointError: a file ends before a tensor does.
    """
    in_order = sorted(reads, key=lambda read: (read.tensor.path, read.tensor.offset))
    limit = chunk_bytes(max_ram, threads)
    if any(read.tensor.is_collective for read in in_order):
        threads = 1  # several would read in another order in each process
    todo = ((read, box) for read in in_order for box in chunks(read.tensor, limit))
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        with Reader() as reader:
            try:
                while not stop.is_set():
                    with lock:
                        chunk = next(todo, None)
                    if chunk is None:
                        return
                    _deliver(reader, *chunk, arrays)
            except BaseException:
                stop.set()
                raise

    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            wait(workers)
        finally:  # also on an interruption such as Ctrl-C
            stop.set()
    for worker in workers:
        worker.result()


def chunk_bytes(max_ram: int, threads: int = THREADS) -> int:
    """Returns the largest chunk for which every thread can hold all its copies in `max_ram`."""
    return min(max(max_ram // (threads * COPIES), 1), MAX_CHUNK_BYTES)


def window_bytes(max_ram: int) -> int:
    """Returns the most bytes that all threads hold at once."""
    return chunk_bytes(max_ram) * THREADS * COPIES


def _deliver(
    reader: Reader, read: PlannedRead, box: Box, arrays: Mapping[str, ShardBuffers]
) -> None:
    """Reads a chunk and writes it into every array that needs part of it."""
    stored, model = read.transfer.target, read.transfer.source
    wanted = list(_wanted_parts(read, box, arrays))
    if not wanted and not read.tensor.is_collective:
        return
    sizes = read.transfer.sizes
    boxes = [relative(find_box(stored.dims, ranges, sizes), box) for _, _, _, ranges in wanted]
    chunk = reader.read(read.tensor, box, boxes)
    axes = [axis for axis in model.array_axes if axis in stored.array_axes]
    stored_order = [axis for axis in stored.array_axes if axis in axes]
    order = [stored_order.index(axis) for axis in axes]
    parts: dict[str, list[Part]] = {}
    for piece, shard, region, ranges in wanted:
        held = chunk[piece.place]
        selected = select_ranges(held, stored.array_axes, piece.region, ranges, axes)
        part = Part(shard, region, ranges, axes, selected.transpose(order))
        parts.setdefault(piece.name, []).append(part)
    for name, of_array in parts.items():
        arrays[name].write(of_array)


def _wanted_parts(
    read: PlannedRead, box: Box, arrays: Mapping[str, ShardBuffers]
) -> Iterator[tuple[Piece, int, Ranges, Ranges]]:
    """Yields each piece of a chunk with a shard that needs part of it, a region and the ranges."""
    for piece in read.transfer.pieces(read.position, box):
        if piece.name in arrays:
            for number, shard in enumerate(arrays[piece.name].shards):
                for region, common in shard.overlaps(piece.ranges):
                    yield piece, number, region, common
