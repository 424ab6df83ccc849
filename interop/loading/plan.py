"""Import planning: maps stored tensors to arrays and collects every error before data is read."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from jaxllm.config import Config, Dtype, dtype_fields, make_config, with_fields
from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.interop.families import Layout, RuleTable
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.stored_tensor import (
    CheckpointError,
    StoredTensor,
    dtype_on_devices,
    main_dtype,
)
from jaxllm.interop.rules import binding
from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.pattern import Index, Side
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.models import build_abstract
from jaxllm.params import parameter_shapes, parameter_shardings, stacked_layers

from .allowances import suggest_allowances
from .checkpoint import open_checkpoint
from .checkpoint_dir import Checkpoint, with_facts_beside
from .diagnostics import carried_names, check_arrays, check_count, check_tensors
from .streaming.planned_array import PlannedArray
from .streaming.stream import PlannedRead, window_bytes
from .user_family import RulesError

MAX_RAM = "256MiB"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan for loading a checkpoint that fits its config.

    Attributes:
        config: the model's config.
        layout: how the checkpoint divides its tensors, such as the number of shards.
        table: the family's table for this config.
        rules: the table's rules, bound to the model.
        tensors: the stored tensors as the rules name them, with fused ones split into parts.
        arrays: the model's arrays by name.
        max_ram: host memory to use in addition to the arrays, in bytes.
        tolerated: the problems that were ignored because `strict` was False.
        unused: the config fields that the original model does not read, as `Fields.unused`.
        carried: the stored tensors outside of the model that an export takes along.
    """

    config: Config
    layout: Layout
    table: RuleTable
    rules: tuple[BoundRule, ...]
    tensors: Mapping[str, StoredTensor]
    arrays: Mapping[str, PlannedArray]
    max_ram: int
    tolerated: tuple[str, ...] = ()
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    carried: tuple[str, ...] = ()

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
        for rule, sizes in self.rules:
            for name, index in rule.stored.names(sizes):
                if any(index[axis] for axis in rule.replicated):
                    first = {**index, **dict.fromkeys(rule.replicated, 0)}
                    yield name, rule.stored.format_name(first, sizes)

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


def plan(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    strict: bool = True,
    max_ram: int | str = MAX_RAM,
    rules: Any = None,
    allow: Sequence[str] = (),
) -> Plan:
    """Returns what `load_pretrained` would do with these arguments, from the headers alone.

    Arguments and errors are those of `load_pretrained`.

    Example:
        plan("Llama-3.2-1B", mesh=mesh).bytes_by_device
    """
    checkpoint = open_checkpoint(local_path(path), rules, strict=strict, allow=allow)
    return make_plan(checkpoint, mesh=mesh, dtype=dtype, max_ram=max_ram)


def make_plan(
    checkpoint: Checkpoint,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    max_ram: int | str = MAX_RAM,
) -> Plan:
    """Plans the loading of a checkpoint and checks every config field and tensor.

    Only the headers are read. Arguments beyond `checkpoint` are those of `load_pretrained`.

    Raises:
        CheckpointError: lists all that is missing, unexpected, mis-shaped or not understood.
        UserError: `dtype` or `max_ram` is not valid.
    """
    if dtype not in (None, *get_args(Dtype)):
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(get_args(Dtype))}")
    analysis = analyze_checkpoint(checkpoint)
    problems = analysis.problems + (analysis.unknown if checkpoint.strict else [])
    config = analysis.config
    if problems or config is None:
        raise CheckpointError([*problems, *suggest_allowances(analysis.refused)], checkpoint.path)
    if dtype is not None:
        config = with_fields(config, dtype_fields(dtype))
    arrays = _plan_arrays(analysis, config, mesh, dtype)
    return Plan(
        config,
        analysis.layout,
        analysis.table,
        analysis.rules,
        analysis.tensors,
        arrays,
        parse_size(max_ram),
        tuple(analysis.unknown),
        analysis.unused,
        tuple(carried_names(analysis.table, analysis.rules, checkpoint.tensors)),
    )


@dataclasses.dataclass
class Analysis:
    """The parts of a `Plan` that could be determined, and the problems found.

    Attributes:
        config: the model's config; None if it cannot be read.
        fields: how each field of the config file is used.
        problems: errors that always prevent loading.
        unknown: what is not understood but `strict=False` tolerates.
        unused, refused: config fields, as those attributes of `Fields`.
    """

    tensors: Mapping[str, StoredTensor]
    config: Config | None = None
    layout: Layout = dataclasses.field(default_factory=Layout)
    table: RuleTable = dataclasses.field(default_factory=lambda: RuleTable((), {}))
    rules: tuple[BoundRule, ...] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, Any] = dataclasses.field(default_factory=dict)


def analyze_checkpoint(checkpoint: Checkpoint) -> Analysis:
    """Checks every config field and every tensor; collects problems instead of raising."""
    family, analysis = checkpoint.family, Analysis(checkpoint.tensors)
    given = with_facts_beside(family, checkpoint.config, checkpoint.path)
    fields, values, dtype = family.fields(given), None, main_dtype(checkpoint.tensors)
    try:
        values, layout = family.read_config(fields, checkpoint.tensors)
        analysis.config = make_config(values, dtype_fields(dtype))
        analysis.table, analysis.layout = family.table_of(
            analysis.config, dataclasses.replace(layout, dtype=dtype), checkpoint.tensors
        )
        check_count(analysis.table, checkpoint.tensors)
        model = build_abstract(analysis.config)
        analysis.rules = analysis.table.bound(stacked_layers(model))
        analysis.problems += check_arrays(analysis.rules, parameter_shapes(model))
    # Sizes are divided before all of them are checked, hence ArithmeticError.
    except (ValueError, ArithmeticError) as error:
        analysis.config = None
        if fields.is_complete:  # otherwise the error may only follow from a missing field
            is_named = isinstance(error, RulesError)
            analysis.problems.append(str(error) if is_named else f"{family.defined_in}: {error}")
    # Fields that were not taken are unknown, unless an error kept them from being taken.
    unknown = fields.unknown() if values is not None or not fields.is_complete else {}
    analysis.fields, analysis.unused = fields.uses(), fields.unused()
    analysis.refused = fields.refused
    own = [f"{family.config_file}: {problem}" for problem in fields.problems]
    left_over = [f"{family.config_file}: {problem}" for problem in unknown.values()]
    if family.reads is None:  # it is unknown whether they change a number
        analysis.unknown, left_over = left_over, []
    else:
        analysis.refused |= dict.fromkeys(unknown)
    analysis.problems = own + left_over + analysis.problems
    if analysis.config is not None:
        stored = analysis.table.with_originals(checkpoint.tensors)
        analysis.tensors = split_fused(analysis.rules, stored)
        find = partial(family.find_field, checkpoint.config, checkpoint.tensors, analysis.table)
        findings = check_tensors(analysis.table, analysis.rules, analysis.tensors, find)
        analysis.problems += findings.problems
        analysis.unknown += findings.unexpected
    return analysis


def split_fused(
    rules: Sequence[BoundRule], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Replaces each fused tensor by its parts, unless its rows differ from the parts' sum."""
    # Not `StoredTensor.rows`, which would ignore the method of a subclass.
    return binding.split_fused(rules, tensors, lambda whole, *part: whole.rows(*part))


def find_arrays(model: Side, index: Index, sizes: Sizes) -> Iterator[str]:
    """Yields the model arrays that contain data of the stored tensor at `index`."""
    axes = model.name_axes
    choices = [(index[axis],) if axis in index else range(sizes[axis]) for axis in axes]
    for positions in itertools.product(*choices):
        yield model.format_name(dict(zip(axes, positions, strict=True)), sizes)


def _plan_arrays(
    analysis: Analysis, config: Config, mesh: Mesh | None, dtype: Dtype | None
) -> dict[str, PlannedArray]:
    """Plans every array. Raises CheckpointError if an array would mix several dtypes."""
    placed = {} if mesh is None else parameter_shardings(build_abstract(config), mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])
    arrays: dict[str, PlannedArray] = {}
    mixed: dict[str, str] = {}
    for rule, sizes in analysis.rules:
        for source, index in rule.stored.names(sizes):
            stored = analysis.tensors[source].dtype
            kept = dtype_on_devices(stored, dtype)
            for name in find_arrays(rule.model, index, sizes):
                sharding = placed.get(name, alone)
                array = PlannedArray(rule.model, sizes, stored, kept, sharding)
                if arrays.setdefault(name, array).dtype != kept:
                    both = sorted([stored.name, arrays[name].stored.name])
                    partly = " and ".join(both)
                    mixed[name] = f"{name} is stored partly as {partly}: choose one with dtype="
    if mixed:
        raise CheckpointError(list(mixed.values()))
    return arrays
