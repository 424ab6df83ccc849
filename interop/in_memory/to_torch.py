"""Hands models over to PyTorch in memory: as a state dict, or into a module, with their AdamW."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from jaxllm.errors import CheckpointError
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.lazy_tensor import TensorSource, find_overflows
from jaxllm.interop.loading.model_arrays import ModelArrays, arrays_of_model
from jaxllm.interop.loading.plan import MAX_RAM
from jaxllm.interop.loading.streaming.stream import THREADS, chunk_bytes
from jaxllm.interop.optimizer_state.export_state import check_resumable
from jaxllm.interop.rules.boxes import Box, boxes, intersect, relative, slices
from jaxllm.interop.saving.export import export_tensors
from jaxllm.models import Model
from jaxllm.numerics.narrowing import Zeroed
from jaxllm.optimizer_state import AdamWState

from .optimizer import write_optimizer
from .process_shards import LocalShard, is_sharded, local_shards
from .target import Target, check_target, find_target
from .torch_tensors import from_numpy

Sources = Mapping[str, TensorSource]

logger = logging.getLogger(__name__)


def to_torch(
    model: Model,
    *,
    into: Any = None,
    with_optimizer: AdamWState | None = None,
    rules: Any = None,
    format: str | None = None,  # noqa: A002 - the word that users expect
    max_ram: int | str = MAX_RAM,
) -> Any:
    """Returns a model as the state dict of a PyTorch module, or fills such a module in place.

    The state dict has what `load_state_dict(strict=True)` asks for: the names that the module has
    in memory, tied tensors under all their names, and buffers. It shares no memory with the model.

    Args:
        model: a model from `from_torch`, `load_pretrained` or training. If its arrays span
            processes, every process must call this and gets everything.
        into: a module to fill instead: its tensors keep their memory, dtype and device; a module
            that is sharded over processes gets its own shards. Buffers that are not part of the
            model stay as they are.
        with_optimizer: the state of AdamW to return as PyTorch's state dict.
        rules: rules for a model of your own (docs/rules.md). Rules that the model came by in this
            process need not be given again.
        format: the format whose families may name the tensors, as in `save_pretrained`; by default
            the one that the model came from, or "hf". With `into`, the module decides.
        max_ram: host memory to use in addition to the tensors: bytes, or a text like "256MiB".

    Returns:
        The state dict, of CPU tensors with the model's dtypes, or the module `into`. With
        `with_optimizer`, a pair of that and the optimizer's state dict, whose groups are the
        parameters that decay and those that do not, each in the module's order.

    Raises:
        CheckpointError: no family can express the model; the module has other names or shapes,
            computes something else by its config, or has a dtype for which numbers of the model
            are too large. Lists every problem; then nothing has been written.

    Example:
        torch_model.load_state_dict(to_torch(model))
    """
    arrays, budget = arrays_of_model(model), parse_size(max_ram)
    target = find_target(arrays, into, rules, format)
    if with_optimizer is not None:
        check_resumable(arrays)
    sources = _sources(arrays, target)
    check_target(target, {name: source.shape for name, source in sources.items()})
    threads = 1 if arrays.span_processes else THREADS
    limit = chunk_bytes(budget, threads)
    read = partial(_read_tensors, limit=limit, threads=threads)
    # The optimizer's state comes first: if it does not fit, the module is still as it was.
    state = with_optimizer and write_optimizer(with_optimizer, arrays, target, read)
    if into is None:
        result = _in_order({**read(sources), **target.buffers}, target)
    else:
        _fill_module(target, sources, limit, threads)
        result = into
    return result if with_optimizer is None else (result, state)


def _sources(arrays: ModelArrays, target: Target) -> Sources:
    """Returns the model's tensors as modules name them: each once, and without buffers."""
    others = {*target.tied, *target.buffers}
    return {
        short: source
        for name, source in export_tensors(arrays, target.table)
        if (short := name.removeprefix(target.prefix)) not in others
    }


def _in_order(tensors: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Returns the state dict in the module's order; tied names have the same tensor."""
    copies = {copy: tensors[original] for copy, original in target.tied.items()}
    every = {**copies, **tensors}
    return {name: every[name] for name in target.tensors or every}


def _read_tensors(sources: Sources, limit: int, threads: int) -> dict[str, Any]:
    """Reads tensors into memory of their own, at most `limit` bytes at a time in each thread."""
    found = {name: np.empty(one.shape, one.dtype) for name, one in sources.items()}

    def fill(name: str, box: Box) -> None:
        sources[name].fill(box, found[name][(*slices(box), ...)])

    _run(fill, sources, limit, threads)
    return {name: from_numpy(array) for name, array in found.items()}


def _fill_module(target: Target, sources: Sources, limit: int, threads: int) -> None:
    """Writes tensors into the memory of the module's."""
    wanted = {name: source.astype(target.tensors[name].dtype) for name, source in sources.items()}
    _check_range(sources, wanted, limit, target)

    shards = {name: _shards(target.tensors[name]) for name in wanted}

    def fill(name: str, box: Box) -> None:
        places = [(intersect(box, _box(shard)), shard) for shard in shards[name]]
        # An array that spans processes is gathered: every process must read every box.
        if threads == 1 or any(place is not None for place, _ in places):
            part = wanted[name].read(box)
        for place, shard in places:
            if place is not None:
                piece = np.array(part[slices(relative(place, box))], order="C", copy=None)
                shard.data[slices(relative(place, _box(shard)))].copy_(from_numpy(piece))

    _run(fill, wanted, limit, threads)
    for copy, original in target.tied.items():  # the module may have it twice
        if copy in target.tensors and (to := target.tensors[copy].data) is not None:
            to.copy_(target.tensors[original].data)


def _check_range(sources: Sources, wanted: Sources, limit: int, target: Target) -> None:
    """Raises CheckpointError if numbers are beyond the range of the module's dtypes.

    Logs a warning on numbers that become zero in them.
    """
    problems, warnings = [], []
    for dtype in {source.dtype for source in wanted.values()}:
        changed = {n: sources[n] for n in wanted if wanted[n].dtype == dtype != sources[n].dtype}
        zeroed = Zeroed(dtype)
        problems += find_overflows(changed, dtype, limit, zeroed)
        warnings.append(zeroed.describe())
    if problems:
        raise CheckpointError(problems, type(target.module).__name__)
    for warning in filter(None, warnings):
        logger.warning("%s", warning)


def _shards(tensor: Any) -> list[LocalShard]:
    """Returns the parts of a module's tensor that this process holds."""
    if is_sharded(tensor.data):
        return local_shards(tensor.data)
    return [LocalShard((0,) * len(tensor.shape), tensor.data)]


def _box(shard: LocalShard) -> Box:
    pairs = zip(shard.offsets, shard.data.shape, strict=True)
    return [(offset, offset + size) for offset, size in pairs]


def _run(work: Callable[[str, Box], None], sources: Sources, limit: int, threads: int) -> None:
    """Calls a function for every box of every tensor, in several threads; raises the first error.

    Args:
        work: takes the name of a tensor and the box.
        sources: the tensors by name.
        limit: the most bytes of a box.
        threads: the number of threads. A single one takes the boxes in order.
    """
    todo = (
        (name, box)
        for name, source in sources.items()
        for box in boxes(source.shape, max(limit // source.dtype.itemsize, 1))
    )
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda each: work(*each), todo):
            pass
