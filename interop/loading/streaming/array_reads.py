"""Reading of arrays: which stored tensors fill which arrays, in which dtype, on which devices."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import jax
import numpy as np
from jax.sharding import Sharding

from jaxllm.distributed.gather import gather_texts
from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats.lazy_tensor import find_overflows, from_stored
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.pattern import Index, Side
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.numerics.narrowing import Zeroed

from .device_buffers import ShardBuffers, make_shard_buffers
from .planned_array import PlannedArray
from .stream import PlannedRead, stream, window_bytes

NOTHING: Mapping[str, jax.Array] = MappingProxyType({})

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArrayReads:
    """The stored tensors to read, and the arrays that each of them fills.

    Attributes:
        table: the table of rules.
        rules: the table's rules, bound to the model.
        tensors: the stored tensors as the rules name them, with fused ones split into parts.
        arrays: the model's arrays by name.
        max_ram: host memory to use in addition to the arrays, in bytes.
    """

    table: RuleTable
    rules: tuple[BoundRule, ...]
    tensors: Mapping[str, StoredTensor]
    arrays: Mapping[str, PlannedArray]
    max_ram: int

    def reads(self) -> Iterator[PlannedRead]:
        """Yields every stored tensor that is read; of several copies, the first."""
        for rule, sizes in self.rules:
            transfer = rule.exporting(sizes)
            for name, index in rule.stored.names(sizes):
                if not any(index[axis] for axis in rule.replicated):
                    yield PlannedRead(self.tensors[name], transfer, index)

    def copies(self) -> Iterator[tuple[str, str]]:
        """Yields every stored tensor that must equal another bit for bit, with that other one.

        Only the other one, the original, is loaded.
        """
        for copy, original in self.table.tied.items():
            if copy in self.tensors:
                yield copy, original
        for bound in self.rules:
            yield from bound.replicas()

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """The bytes of parameters that each device will hold, by device."""
        total = Counter[str]()
        for array in self.arrays.values():
            shard = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
            for device in array.sharding.device_set:
                total[str(device)] += shard
        return dict(sorted(total.items()))

    @property
    def window_bytes(self) -> int:
        """Peak host memory in addition to the arrays: the buffers of all reading threads."""
        return window_bytes(self.max_ram)

    @property
    def dtype_changes(self) -> dict[str, tuple[str, str]]:
        """The stored and the loaded dtype of each array whose dtype changes."""
        return {
            name: (array.stored.name, array.dtype.name)
            for name, array in self.arrays.items()
            if array.stored != array.dtype
        }


def find_arrays(model: Side, index: Index, sizes: Sizes) -> Iterator[str]:
    """Yields the model arrays that contain data of the stored tensor at `index`."""
    axes = model.name_axes
    choices = [(index[axis],) if axis in index else range(sizes[axis]) for axis in axes]
    for positions in product(*choices):
        yield model.format_name(dict(zip(axes, positions, strict=True)), sizes)


def plan_arrays(
    rules: Sequence[BoundRule],
    tensors: Mapping[str, StoredTensor],
    placed: Callable[[str], Sharding],
    dtype_of: Callable[[str, np.dtype], np.dtype],
) -> dict[str, PlannedArray]:
    """Plans every array.

    Args:
        rules: the rules, bound to the model.
        tensors: the stored tensors by the names in the rules.
        placed: returns the sharding of an array.
        dtype_of: returns the dtype of an array, from its name and the stored dtype.

    Raises:
        CheckpointError: an array would mix several dtypes. Lists each.
    """
    arrays: dict[str, PlannedArray] = {}
    mixed: dict[str, str] = {}
    for rule, sizes in rules:
        for source, index in rule.stored.names(sizes):
            stored = tensors[source].dtype
            for name in find_arrays(rule.model, index, sizes):
                kept = dtype_of(name, stored)
                array = PlannedArray(rule.model, sizes, stored, kept, placed(name))
                if arrays.setdefault(name, array).dtype != kept:
                    both = " and ".join(sorted([stored.name, arrays[name].stored.name]))
                    choose = "choose one with dtype= (--dtype)"
                    mixed[name] = f"{name} is stored partly as {both}: {choose}"
    if mixed:
        raise CheckpointError(list(mixed.values()))
    return arrays


def read_arrays(plan: ArrayReads, given: Mapping[str, jax.Array] = NOTHING) -> dict[str, jax.Array]:
    """Reads the arrays onto their devices, by name, but for those that are given.

    Logs a warning on finite numbers beyond the range of a dtype, which become its largest, and on
    numbers that become zero in it (of the parts that this process reads).
    """
    buffers = {
        name: make_shard_buffers(array.side, array.sizes, array.dtype, array.sharding)
        for name, array in plan.arrays.items()
        if name not in given
    }
    stream(plan.reads(), buffers, plan.max_ram)
    for dtype in _clamped(plan, buffers):
        read = {one.tensor.name: from_stored(one.tensor) for one in _into(plan, dtype)}
        found = find_overflows(read, dtype, window_bytes(plan.max_ram))
        logger.warning("%s; clamped to it:\n  %s", found[0], "\n  ".join(found[1:]))
    _warn_of_zeros(plan, buffers)
    return {
        name: given[name]
        if name in given
        else jax.make_array_from_single_device_arrays(
            array.shape, array.sharding, buffers[name].arrays()
        )
        for name, array in plan.arrays.items()
    }


def _warn_of_zeros(plan: ArrayReads, buffers: Mapping[str, ShardBuffers]) -> None:
    """Logs a warning for each dtype in which numbers became zero."""
    found: dict[np.dtype, Zeroed] = {}
    for name, buffer in buffers.items():
        array = plan.arrays[name]
        zeroed = found.setdefault(array.dtype, Zeroed(array.dtype))
        zeroed.add(name, array.shape, buffer.zeroed)
    for warning in filter(None, (zeroed.describe() for zeroed in found.values())):
        logger.warning("%s", warning)


def _clamped(plan: ArrayReads, buffers: Mapping[str, ShardBuffers]) -> list[np.dtype]:
    """Returns the dtypes whose range numbers exceeded.

    If all processes read together, those of any process: each reads the tensors again.
    """
    found = {plan.arrays[name].dtype.name for name, one in buffers.items() if one.overflows}
    if any(read.tensor.is_collective for read in plan.reads()):
        texts = gather_texts(" ".join(sorted(found)))
        found = {name for text in texts for name in text.split()}
    return [np.dtype(name) for name in sorted(found)]


def _into(plan: ArrayReads, dtype: np.dtype) -> Iterator[PlannedRead]:
    """Yields what is read into arrays of this dtype."""
    for read in plan.reads():
        sizes = read.transfer.sizes
        names = find_arrays(read.transfer.source, read.position, sizes)
        if plan.arrays[next(names)].dtype == dtype:
            yield read
