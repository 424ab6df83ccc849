"""Import planning: maps stored tensors to arrays and collects every error before data is read."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from jaxllm.config import Config, Dtype, dtype_fields, make_config, with_fields
from jaxllm.config.numerics import check_dtype
from jaxllm.hub import local_path
from jaxllm.interop.families import Layout, RuleTable
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.quantized.decoded_tensor import in_float32
from jaxllm.interop.formats.stored_tensor import (
    CheckpointError,
    StoredTensor,
    dtype_on_devices,
    main_dtype,
)
from jaxllm.interop.rules import binding
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.interop.rules.rules_file import RulesError
from jaxllm.models import build_abstract
from jaxllm.params import parameter_shapes, parameter_shardings, stacked_layers

from .allowances import suggest_allowances
from .checkpoint import open_checkpoint
from .checkpoint_dir import Checkpoint, with_facts_beside
from .diagnostics import carried_names, check_arrays, check_count, check_tensors
from .streaming.array_reads import ArrayReads, plan_arrays

MAX_RAM = "256MiB"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(ArrayReads):
    """The plan for loading a checkpoint that fits its config.

    Attributes:
        config: the model's config.
        layout: how the checkpoint divides its tensors, such as the number of shards.
        table: the family's table for this config.
        rules: the table's rules, bound to the model.
        tensors: the stored tensors as the rules name them, with fused ones split into parts.
        arrays: the model's arrays by name.
        max_ram: host memory to use in addition to the arrays, in bytes.
        bytes_by_device: the bytes of parameters that each device will hold, by device.
        window_bytes: peak host memory in addition to the arrays: the buffers of all threads.
        dtype_changes: the stored and the loaded dtype of each array whose dtype changes.
        tolerated: the problems that were ignored because `strict` was False.
        unused: the config fields that the original model does not read, as `Fields.unused`.
        carried: the stored tensors outside of the model that an export takes along.
    """

    config: Config
    layout: Layout
    tolerated: tuple[str, ...] = ()
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    carried: tuple[str, ...] = ()


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
        CheckpointError: lists what is missing, unexpected, of a wrong shape or not understood.
        UserError: `dtype` or `max_ram` is not valid.
    """
    check_dtype(dtype)
    analysis = analyze_checkpoint(checkpoint)
    problems = analysis.problems + (analysis.unknown if checkpoint.strict else [])
    config = analysis.config
    if problems or config is None:
        raise CheckpointError([*problems, *suggest_allowances(analysis.refused)], checkpoint.path)
    if dtype is not None:
        config = with_fields(config, dtype_fields(dtype))
    if dtype == "float32":
        analysis.tensors = in_float32(analysis.tensors)
    placed = {} if mesh is None else parameter_shardings(build_abstract(config), mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])
    arrays = plan_arrays(
        analysis.rules,
        analysis.tensors,
        lambda name: placed.get(name, alone),
        lambda name, stored: dtype_on_devices(stored, dtype),
    )
    return Plan(
        analysis.table,
        analysis.rules,
        analysis.tensors,
        arrays,
        parse_size(max_ram),
        config=config,
        layout=analysis.layout,
        tolerated=tuple(analysis.unknown),
        unused=analysis.unused,
        carried=tuple(carried_names(analysis.table, analysis.rules, checkpoint.tensors)),
    )


@dataclasses.dataclass
class Analysis:
    """The parts of a `Plan` that could be determined, and the problems found.

    Attributes:
        config: the model's config; None if it cannot be read.
        fields: how each field of the config file is used.
        problems: errors that always prevent loading.
        unknown: what is not understood but `strict=False` tolerates.
        unused: the config fields that change no number, as from `Fields.unused`.
        refused: the config fields that are refused, as in `Fields.refused`.
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
    storage = [f"{family.config_file}: {problem}" for problem in checkpoint.problems]
    analysis.problems = own + storage + left_over + analysis.problems
    if analysis.config is not None and not storage:
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
