"""Stored tensors to arrays on their devices: in the order of the files, through a bounded window.

A few threads each read a chunk at a time and hand it to every array that wants some of it. So
what is in flight is bounded by their number, and what several devices hold is read once.
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
from .device_buffers import Assembly, Part

THREADS = 4
COPIES = 4  # of a chunk: as it was read, in the array's order, and as much in the allocator
MAX_CHUNK_BYTES = 8 << 20  # a larger one leaves the cache between being read and being copied


class Move(NamedTuple):
    """A stored tensor that is read, and the rule that makes it of the model's arrays.

    The rule is followed backwards: `position` is that of the axes in the tensor's name.
    """

    tensor: StoredTensor
    transfer: Transfer
    position: Index


def stream(
    moves: Iterable[Move], arrays: Mapping[str, Assembly], max_ram: int, *, threads: int = THREADS
) -> None:
    """Reads what the arrays' shards want of each tensor, and fills them with it.

    Each thread has an equal share of `max_ram` bytes. Raises CheckpointError if a file ends before
    a tensor does.
    """
    in_order = sorted(moves, key=lambda move: (move.tensor.path, move.tensor.offset))
    limit = chunk_bytes(max_ram, threads)
    todo = ((move, box) for move in in_order for box in chunks(move.tensor, limit))
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
        finally:  # an interruption, too, ends them all
            stop.set()
    for worker in workers:
        worker.result()


def chunk_bytes(max_ram: int, threads: int = THREADS) -> int:
    """How large a chunk may be, if every thread may have one with all its copies."""
    return min(max(max_ram // (threads * COPIES), 1), MAX_CHUNK_BYTES)


def window_bytes(max_ram: int) -> int:
    """What all threads can have in hand at once."""
    return chunk_bytes(max_ram) * THREADS * COPIES


def _deliver(reader: Reader, move: Move, box: Box, arrays: Mapping[str, Assembly]) -> None:
    """Reads a chunk, and has every array take what it wants of it."""
    stored, model = move.transfer.target, move.transfer.source
    wanted = list(_wanted(move, box, arrays))
    if not wanted:
        return
    sizes = move.transfer.sizes
    boxes = [relative(find_box(stored.dims, ranges, sizes), box) for _, _, _, ranges in wanted]
    chunk = reader.read(move.tensor, box, boxes)
    axes = [axis for axis in model.array_axes if axis in stored.array_axes]
    lying = [axis for axis in stored.array_axes if axis in axes]
    order = [lying.index(axis) for axis in axes]
    parts: dict[str, list[Part]] = {}
    for piece, shard, region, ranges in wanted:
        held = chunk[piece.place]
        lain = select_ranges(held, stored.array_axes, piece.region, ranges, axes)
        part = Part(shard, region, ranges, axes, lain.transpose(order))
        parts.setdefault(piece.name, []).append(part)
    for name, of_array in parts.items():
        arrays[name].write(of_array)


def _wanted(
    move: Move, box: Box, arrays: Mapping[str, Assembly]
) -> Iterator[tuple[Piece, int, Ranges, Ranges]]:
    """The pieces of a chunk, the shards that want some of one, and what of their regions."""
    for piece in move.transfer.pieces(move.position, box):
        if piece.name in arrays:
            for number, shard in enumerate(arrays[piece.name].shards):
                for region, common in shard.overlaps(piece.ranges):
                    yield piece, number, region, {**piece.ranges, **common}
