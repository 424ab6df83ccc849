"""Tensors sharded over the processes of torch.distributed (DTensor, FSDP), read by all together.

Reading a box is collective: the process that holds a part sends it to all others, so that no
process ever holds more of a tensor than its own shard and the box.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxllm.errors import CheckpointError
from jaxllm.interop.formats.sharded_tensor import Chunk, ShardedTensor, join
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box, box_shape, slices

from .torch_tensors import numpy_dtype, to_numpy, why_unreadable

# The modules and names of PyTorch's classes of sharded tensors; none is imported to find out.
_CLASSES = (
    ("torch.distributed.tensor", "DTensor"),
    ("torch.distributed._shard.sharded_tensor", "ShardedTensor"),
)
Shape = tuple[int, ...]
# The shape of each tensor, and the offsets and shapes of its shards, by name.
Places = Mapping[str, tuple[Shape, list[tuple[Shape, Shape]]]]


class LocalShard(NamedTuple):
    """A box of a tensor that this process holds: its offsets, and its numbers."""

    offsets: tuple[int, ...]
    data: Any


@dataclasses.dataclass(frozen=True, eq=False)
class ProcessShard(StoredTensor):
    """A shard in the memory of one process; all processes of torch.distributed must read it.

    Attributes:
        rank: the process that holds it.
        like: a tensor of this process with the dtype and on the device to receive parts with.
        data: the shard; None in other processes.
    """

    offset: int = 0
    rank: int = 0
    like: Any = None
    data: Any = None
    is_collective: ClassVar[bool] = True

    def rows(self, name: str, start: int, count: int) -> StoredTensor:
        """Returns `count` rows from `start` on, as a tensor with a name of its own."""
        data = None if self.data is None else self.data[start : start + count]
        shape, path = (count, *self.shape[1:]), self.path
        return ProcessShard(
            name, self.dtype, shape, path, rank=self.rank, like=self.like, data=data
        )

    def read(self, box: Box | None = None) -> np.ndarray:
        """Returns a box, by default the whole shard; every process must call this."""
        import torch
        import torch.distributed

        box = [(0, size) for size in self.shape] if box is None else box
        if self.data is None:
            part = self.like.new_empty(box_shape(box))
        else:
            part = self.data[slices(box)].contiguous()
        # As bytes: not every backend sends every dtype.
        torch.distributed.broadcast(part.reshape(-1).view(torch.uint8), src=self.rank)
        return to_numpy(part)


def is_sharded(value: object) -> bool:
    """Whether a value is a tensor that PyTorch shards over processes."""
    found = ((sys.modules.get(module), name) for module, name in _CLASSES)
    return any(module is not None and isinstance(value, getattr(module, n)) for module, n in found)


def local_shards(tensor: Any) -> list[LocalShard]:
    """Returns the shards of a sharded tensor that this process holds, empty ones left out.

    Raises:
        CheckpointError: the tensor is a partial sum, or its numbers cannot be read.
    """
    if hasattr(tensor, "placements"):
        if any(placement.is_partial() for placement in tensor.placements):
            raise CheckpointError("is a partial sum over processes: redistribute it first")
        local = tensor.to_local().detach()
        (place,) = tensor.__create_chunk_list__()
        found = [LocalShard(tuple(place.offsets), local)]
    else:
        found = [
            LocalShard(tuple(shard.metadata.shard_offsets), shard.tensor.detach())
            for shard in tensor.local_shards()
        ]
    for shard in found:
        if (why := why_unreadable(shard.data)) is not None:
            raise CheckpointError(why)
    return [shard for shard in found if 0 not in shard.data.shape]


def gather_shards(tensors: Mapping[str, Any], path: Path) -> dict[str, ShardedTensor]:
    """Returns sharded tensors that every process reads together.

    Only the places of the shards are exchanged. If a process has sharded tensors, all processes of
    torch.distributed must call this.

    Args:
        tensors: the sharded tensors of this process, by name.
        path: what messages call the state dict.

    Raises:
        CheckpointError: tensors cannot be read, or processes do not have the same ones. Lists every
            problem, in all processes.
    """
    if not tensors:
        return {}
    own, problems = {}, []
    for name, tensor in tensors.items():
        try:
            own[name] = local_shards(tensor)
        except CheckpointError as error:
            problems += [f"{name} {problem}" for problem in error.problems]
    places = {
        name: (tuple(tensors[name].shape), [(s.offsets, tuple(s.data.shape)) for s in shards])
        for name, shards in own.items()
    }
    every = _exchange((places, problems))
    if found := list(dict.fromkeys(problem for _, theirs in every for problem in theirs)):
        raise CheckpointError(found, path)
    listed = [theirs for theirs, _ in every]
    if wrong := _differing(listed):
        raise CheckpointError(wrong, path)
    return {
        name: _join(name, path, tensors[name], own[name], [theirs[name] for theirs in listed])
        for name in tensors
    }


def _exchange(value: Any) -> list[Any]:
    """Returns the value of every process, by rank."""
    from torch import distributed

    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, value)
    return every


def _differing(listed: Sequence[Places]) -> list[str]:
    """Returns a message for each tensor that processes do not have alike."""
    shapes: dict[str, dict[int, object]] = {}
    for rank, places in enumerate(listed):
        for name, (shape, _) in places.items():
            shapes.setdefault(name, {})[rank] = shape
    problems = []
    for name, by_rank in shapes.items():
        without = [rank for rank in range(len(listed)) if rank not in by_rank]
        if without:
            where = ", ".join(map(str, without))
            problems.append(f"{name} is missing in the state dict of process {where}")
        elif len(set(by_rank.values())) > 1:
            problems.append(f"{name} has other shapes in other processes: {by_rank}")
    return problems


def _join(
    name: str, path: Path, tensor: Any, own: Sequence[LocalShard], places: Sequence[tuple]
) -> ShardedTensor:
    """Returns the tensor of all processes' shards; of equal ones, the first process's is read."""
    like = _device_tensor(tensor)
    dtype, held = numpy_dtype(like), {shard.offsets: shard.data for shard in own}
    chunks: dict[tuple, Chunk] = {}
    for rank, (_, shards) in enumerate(places):
        for offsets, shape in shards:
            if (offsets, shape) not in chunks:
                data = held.get(offsets) if rank == _rank() else None
                shard = ProcessShard(name, dtype, shape, path, rank=rank, like=like, data=data)
                chunks[offsets, shape] = Chunk(offsets, shard)
    return join(name, tuple(tensor.shape), path, list(chunks.values()))


def _rank() -> int:
    from torch import distributed

    return distributed.get_rank()


def _device_tensor(tensor: Any) -> Any:
    """Returns a tensor of the same dtype on the device with which this process communicates."""
    if hasattr(tensor, "placements"):
        return tensor.to_local().detach()
    shards = tensor.local_shards()
    return shards[0].tensor.detach() if shards else tensor.new_empty(0)
