"""The levels below any computing: the config field by field, the weights bit by bit."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jaxllm.config import Config, StackConfig, flatten, make_config, with_fields
from jaxllm.interop.families import Table
from jaxllm.interop.parity.alignment.inputs import last_stack
from jaxllm.interop.parity.alignment.parameter_names import (
    DECAYED,
    our_names,
    read_config,
    sources_of,
    split_fused,
    table_for,
    tensors_of,
    unfit,
)
from jaxllm.interop.parity.execution.jax_parameters import LazyWeights
from jaxllm.interop.parity.report.rows import FieldResult, WeightResult
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.models import Model, build_abstract, with_scanned_layers
from jaxllm.params import stacks

# What two configs may differ in and still mean the same numbers. The layout of rotated pairs says
# how our kernels lie, which the rules follow; how long sequences were says nothing of the short.
FREE = {
    "max_len",
    "init.kind",
    "init.std",
    "dropout",
    "rope.layout",
    "numerics.param_dtype",
    "numerics.dtype",
    "scan_layers",
    "remat",
}


def compare_config(reference: Any, model: Model) -> list[FieldResult]:
    """Every field that bears on the numbers, read from the reference's config and in ours."""
    return compare_fields(*fields_of(reference, model), model)


def fields_of(reference: Any, model: Model) -> tuple[dict[str, str] | None, list[str]]:
    """The reference's config in our fields, by dotted names, and what is wrong with it."""
    theirs, problems = config_of(reference, model)
    return None if theirs is None else _flat(theirs), problems


def compare_fields(
    given: dict[str, str] | None, problems: Sequence[str], model: Model
) -> list[FieldResult]:
    """What `fields_of` found against the config of `model`."""
    if given is None:
        return [FieldResult("config", "", problem) for problem in problems]
    ours = _flat(model.config)
    rows = [
        FieldResult(f"config.{name}", ours.get(name, "None"), given.get(name, "None"))
        for name in {**ours, **given}
    ]
    return [*rows, *(FieldResult("config", "", problem) for problem in problems)]


def config_of(reference: Any, model: Model) -> tuple[Config | None, list[str]]:
    """The reference's config as ours would be, and what is wrong with it."""
    values, _, problems = read_config(reference)
    try:
        return make_config(values, numerics=last_stack(model).numerics), problems
    except (ValueError, TypeError) as error:
        return None, problems or [str(error)]


def _flat(config: Config | StackConfig) -> dict[str, str]:
    """Fields, those of parts by dotted names; of the pattern, what every layer has."""
    flat: dict[str, str] = {}
    fields = flatten(config) if isinstance(config, StackConfig) else vars(config)
    for name, value in fields.items():
        if name == "pattern":
            every: Sequence[Any] = config.kinds  # type: ignore[union-attr] # it has a pattern
            for part in dataclasses.fields(every[0]):
                kinds = (getattr(kind, part.name) for kind in every)
                flat[f"pattern.{part.name}"] = " ".join(map(str, kinds))
        elif isinstance(value, StackConfig):
            flat |= {f"{name}.{field}": text for field, text in _flat(value).items()}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = dataclasses.asdict(value)
            flat |= {f"{name}.{field}": repr(part) for field, part in parts.items()}
        elif name not in FREE:
            flat[name] = repr(value)
    return flat


def compare_weights(reference: Any, model: Model, table: Table) -> list[WeightResult]:
    """Every tensor of the reference, led through the rules, against ours.

    Args:
        reference: of any kind.
        model: ours, its layers one by one.
        table: of the reference's family, for our config.
    """
    tensors, rules = tensors_of(reference), table.bound(stacks(model))
    rows = list(_rules(rules, tensors, LazyWeights(model)))
    rows += _copies(table, rules, tensors)
    accounted = {*our_names(rules), *table.tied, *(derived.name for derived in table.derived)}
    unexpected = [
        name
        for name in tensors
        if name not in accounted and not any(fnmatchcase(name, p) for p in table.ignored)
    ]
    if unexpected:
        places = _places(reference, model)
        rows += [_alone(name, tensors[name], places.get(name, name)) for name in unexpected]
    return rows


def misfits(reference: Any, model: Model, table: Table) -> list[str]:
    """Kernels and embeddings that the reference lacks or has in another shape.

    With any of them the two cannot be run side by side.
    """
    rules = table.bound(stacks(model))
    parts = split_fused(rules, tensors_of(reference))
    kernels = (bound for bound in rules if bound.rule.model.name.endswith(DECAYED))
    return [problem for bound in kernels for problem in unfit(bound, parts)]


def _rules(
    rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]
) -> Iterator[WeightResult]:
    parts = split_fused(rules, tensors)
    for bound in rules:
        stored = tuple(name for name, _ in bound.stored())
        problems = list(unfit(bound, parts))
        theirs = {} if problems else dict(sources_of([bound], parts))
        for name, _ in bound.rule.model.names(bound.sizes):
            path, _, parameter = name.rpartition(".")
            array = ours[name]
            differing = num_bits = 8 * array.nbytes
            if not problems:
                source = theirs[name]
                differing = differing_bits(array, source.read(source.whole))
            yield WeightResult(path, parameter, stored, num_bits, differing, "; ".join(problems))


def _copies(
    table: Table, rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray]
) -> Iterator[WeightResult]:
    """Tensors that the table says are copies of others."""
    names = our_names(rules)
    for copy, original in table.tied.items():
        if copy in tensors and original in tensors:
            path, _, parameter = names[original][0].rpartition(".")
            bits = 8 * tensors[copy].nbytes
            differing = differing_bits(tensors[copy], tensors[original])
            yield WeightResult(path, parameter, (copy,), bits, differing, f"a copy of {original}")


def _places(reference: Any, model: Model) -> dict[str, str]:
    """Where the tensors would be in a model of the reference's own config."""
    config, _ = config_of(reference, model)
    if config is None:
        return {}
    table = table_for(reference, config)
    whole = with_scanned_layers(build_abstract(with_fields(config, scan_layers=False)), False)
    return {stored: ours[0] for stored, ours in our_names(table.bound(stacks(whole))).items()}


def _alone(name: str, tensor: np.ndarray, place: str) -> WeightResult:
    path, _, parameter = place.rpartition(".")
    bits = 8 * tensor.nbytes
    return WeightResult(path, parameter, (name,), bits, bits, "the model has no such tensor")


def differing_bits(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Bits in which two arrays differ; all of them if their shapes do."""
    if ours.shape != theirs.shape:
        return 8 * theirs.nbytes
    same = np.ascontiguousarray(ours.astype(theirs.dtype, copy=False))
    a, b = (x.reshape(-1).view(np.uint8) for x in (same, np.ascontiguousarray(theirs)))
    return int(np.bitwise_count(a ^ b).sum(dtype=np.int64))
