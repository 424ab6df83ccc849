"""Before any tensor is read: which stored tensors make up which array, and all that is wrong."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from jaxllm.config import Config, Dtype, NumericsConfig, make_config, with_fields
from jaxllm.errors import UserError
from jaxllm.interop.families import Fields, Layout, Table
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.bijection import fused_parts
from jaxllm.interop.rules.pattern import Index, Side
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.models import build_abstract
from jaxllm.params import parameter_shapes, parameter_shardings, stacked_layers

from .checkpoint_dir import Checkpoint
from .diagnostics import check_arrays, check_tensors
from .streaming.stream import Move, window_bytes
from .user_family import open_checkpoint

MAX_RAM = "256MiB"


class PlannedArray(NamedTuple):
    """An array of the model: what it is, what it was stored as, and where it goes."""

    side: Side
    sizes: Sizes
    stored: np.dtype
    dtype: np.dtype
    sharding: Sharding

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self.side.shape(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checkpoint that fits its config: the model, and how each of its arrays is put together."""

    config: Config
    layout: Layout
    table: Table
    rules: tuple[BoundRule, ...]
    tensors: Mapping[str, StoredTensor]  # as the rules name them: the parts of fused ones apart
    arrays: Mapping[str, PlannedArray]
    max_ram: int
    tolerated: tuple[str, ...] = ()  # what would have been refused, had it not been for strict

    def moves(self) -> Iterator[Move]:
        """Every stored tensor that is read; of copies, the first."""
        for rule, sizes in self.rules:
            transfer = rule.exporting(sizes)
            for name, index in rule.stored.names(sizes):
                if not any(index[axis] for axis in rule.replicated):
                    yield Move(self.tensors[name], transfer, index)

    def copies(self) -> Iterator[tuple[str, str]]:
        """Stored tensors that must have the bits of another, which is read instead of them."""
        for copy, original in self.table.tied.items():
            if copy in self.tensors:
                yield copy, original
        for rule, sizes in self.rules:
            for name, index in rule.stored.names(sizes):
                if any(index[axis] for axis in rule.replicated):
                    first = {**index, **dict.fromkeys(rule.replicated, 0)}
                    yield name, rule.stored.format_name(first, sizes)

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """What each device of the mesh will hold."""
        total = Counter[str]()
        for array in self.arrays.values():
            shard = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
            for device in array.sharding.device_set:
                total[str(device)] += shard
        return dict(sorted(total.items()))

    @property
    def window_bytes(self) -> int:
        """Peak host memory above the arrays: all that the threads that read can have in hand."""
        return window_bytes(self.max_ram)

    @property
    def dtype_changes(self) -> dict[str, tuple[str, str]]:
        """The arrays that do not keep the dtype they are stored in, and both dtypes."""
        return {
            name: (array.stored.name, array.dtype.name)
            for name, array in self.arrays.items()
            if array.stored != array.dtype
        }


def plan(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    max_ram: int | str = MAX_RAM,
    rules: Any = None,
) -> Plan:
    """What `load_pretrained` with these arguments would do, from the headers alone.

    Raises CheckpointError, as it would, with everything that does not fit.
    """
    return make_plan(open_checkpoint(Path(path), rules), mesh=mesh, dtype=dtype, max_ram=max_ram)


def make_plan(
    checkpoint: Checkpoint,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    max_ram: int | str = MAX_RAM,
    strict: bool = True,
) -> Plan:
    """Accounts for every field of the config and every tensor, from the headers alone.

    Raises CheckpointError with everything missing, unexpected, mis-shaped or not understood.
    """
    if dtype not in (None, *get_args(Dtype)):
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(get_args(Dtype))}")
    account = analyze_checkpoint(checkpoint)
    problems = account.problems + (account.unknown if strict else [])
    config = account.config
    if problems or config is None:
        raise CheckpointError(problems, checkpoint.path)
    if dtype is not None:
        config = with_fields(config, numerics=NumericsConfig(param_dtype=dtype, dtype=dtype))
    arrays = _place(account, config, mesh, dtype)
    return Plan(
        config,
        account.layout,
        account.table,
        account.rules,
        account.tensors,
        arrays,
        parse_size(max_ram),
        tuple(account.unknown),
    )


@dataclasses.dataclass
class Analysis:
    """What is understood of a checkpoint, and what is not. `config` is None if it has none."""

    tensors: Mapping[str, StoredTensor]
    config: Config | None = None
    layout: Layout = dataclasses.field(default_factory=Layout)
    table: Table = dataclasses.field(default_factory=lambda: Table((), {}))
    rules: tuple[BoundRule, ...] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what becomes of each
    problems: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)  # fields and tensors


def analyze_checkpoint(checkpoint: Checkpoint) -> Analysis:
    """Follows every field and every tensor to where it ends."""
    family, account = checkpoint.family, Analysis(checkpoint.tensors)
    fields = Fields(checkpoint.config)
    try:
        values, account.layout = family.read_config(fields, checkpoint.tensors)
        dtype = _main_dtype(checkpoint.tensors)
        account.config = make_config(
            values, numerics=NumericsConfig(param_dtype=dtype, dtype=dtype)
        )
        account.table = family.table(account.config, account.layout)
        model = build_abstract(account.config)
        account.rules = account.table.bound(stacked_layers(model))
        account.problems += check_arrays(account.rules, parameter_shapes(model))
    except (ValueError, ArithmeticError) as error:  # sizes are divided before all are checked
        account.config = None
        if fields.is_complete:  # else it may follow from what is missing
            account.problems.append(f"{family.config_file or family.name}: {error}")
    account.fields = fields.uses()
    said = [f"{family.config_file}: {problem}" for problem in fields.problems]
    account.problems = said + account.problems
    account.unknown += [f"{family.config_file}: {problem}" for problem in fields.unknown()]
    if account.config is not None:
        account.tensors = split_fused(account.rules, checkpoint.tensors)
        findings = check_tensors(account.table, account.rules, account.tensors)
        account.problems += findings.problems
        account.unknown += findings.unexpected
    return account


def split_fused(
    rules: Sequence[BoundRule], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors, with each fused one replaced by its parts, as far as it has rows for them."""
    split = dict(tensors)
    for fused, parts in fused_parts(rules).items():
        whole = tensors.get(fused)
        if whole is None or not whole.shape:
            continue
        rows = [shape[0] for shape in parts.values()]
        if sum(rows) != whole.shape[0]:
            continue
        del split[fused]
        for part, start, count in zip(parts, np.cumsum([0, *rows]), rows, strict=False):
            split[part] = whole.rows(part, int(start), count)
    return split


def find_arrays(model: Side, index: Index, sizes: Sizes) -> Iterator[str]:
    """The arrays that have numbers of the stored tensor at `index`."""
    axes = model.name_axes
    choices = [(index[axis],) if axis in index else range(sizes[axis]) for axis in axes]
    for positions in itertools.product(*choices):
        yield model.format_name(dict(zip(axes, positions, strict=True)), sizes)


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> Dtype:
    """The dtype of most bytes: what the model was saved in."""
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[tensor.dtype.name] += tensor.nbytes
    known: tuple[Dtype, ...] = get_args(Dtype)
    return max(known, key=sizes.__getitem__)


def _place(
    account: Analysis, config: Config, mesh: Mesh | None, dtype: Dtype | None
) -> dict[str, PlannedArray]:
    """Every array of the model. Raises CheckpointError for one of several dtypes."""
    placed = {} if mesh is None else parameter_shardings(build_abstract(config), mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])
    arrays: dict[str, PlannedArray] = {}
    mixed: dict[str, str] = {}
    for rule, sizes in account.rules:
        for source, index in rule.stored.names(sizes):
            stored = account.tensors[source].dtype
            kept = stored if dtype is None else np.dtype(dtype)
            for name in find_arrays(rule.model, index, sizes):
                sharding = placed.get(name, alone)
                array = PlannedArray(rule.model, sizes, stored, kept, sharding)
                if arrays.setdefault(name, array).dtype != kept:
                    both = sorted([stored.name, arrays[name].stored.name])
                    mixed[name] = f"{name} is stored in parts of {' and '.join(both)}"
    if mixed:
        raise CheckpointError(list(mixed.values()))
    return arrays
