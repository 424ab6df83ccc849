"""Weights level: compares every tensor of the reference with the model's, bit by bit."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from jaxllm.config import with_fields
from jaxllm.interop.families import RuleTable
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.parity.alignment.function_model import FunctionModel
from jaxllm.interop.parity.alignment.parameter_names import (
    Imported,
    is_decayed,
    mismatches,
    our_names,
    sources_of,
    split_fused,
    table_for,
    tensors_of,
)
from jaxllm.interop.parity.alignment.references.peft_models import base_name, is_factor
from jaxllm.interop.parity.execution.jax_parameters import LazyWeights
from jaxllm.interop.parity.report.rows import WeightResult
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.models import Model, build_abstract, with_scanned_layers
from jaxllm.params import stacked_layers

from .config import config_of
from .level import Stage, both_digests
from .sides import Comparison, JaxSide

INTEGERS = "biu"  # kinds of NumPy dtypes


def compare_weights(reference: Any, model: Model, table: RuleTable) -> list[WeightResult]:
    """Converts every tensor of the reference by the rules and compares it with the model's.

    Args:
        reference: a model of transformers or a plain PyTorch module.
        model: the JAX model, its layers not stacked.
        table: conversion rules of the reference's family for the model's config.
    """
    tensors, rules = tensors_of(reference), table.bound(stacked_layers(model))
    rows = list(_rules(rules, tensors, LazyWeights(model)))
    rows += _copies(table, rules, tensors)
    accounted = {*our_names(rules), *table.tied, *(derived.name for derived in table.derived)}
    unexpected = [
        name for name in tensors if name not in accounted and reason_to_ignore(table, name) is None
    ]
    if unexpected:
        places = _places(reference, model)
        rows += [_alone(name, tensors[name], places.get(name, name)) for name in unexpected]
    return rows


def shape_mismatches(reference: Any, model: Model, table: RuleTable) -> list[str]:
    """Lists kernels and embeddings that the reference lacks or has in another shape.

    If there are any, the two cannot be run side by side.
    """
    rules = table.bound(stacked_layers(model))
    parts = split_fused(rules, tensors_of(reference))
    kernels = (bound for bound in rules if is_decayed(model, _first_array(bound)))
    return [problem for bound in kernels for problem in mismatches(bound, parts)]


def _first_array(bound: BoundRule) -> str:
    return next(bound.rule.model.names(bound.sizes))[0]


def _rules(
    rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]
) -> Iterator[WeightResult]:
    parts = split_fused(rules, tensors)
    for bound in rules:
        stored = tuple(name for name, _ in bound.stored())
        problems = list(mismatches(bound, parts))
        theirs = {} if problems else dict(sources_of([bound], parts))
        for name, _ in bound.rule.model.names(bound.sizes):
            path, _, parameter = name.rpartition(".")
            array = ours[name]
            differing, num_bits, own, other = 8 * array.nbytes, 8 * array.nbytes, digest(array), ""
            remarks = problems
            if not problems:
                source = theirs[name]
                given = source.read(source.whole)
                differing = differing_bits(array, given)
                other = own if differing == 0 else digest(given)
                if not _are_comparable(array, given):
                    remarks = [f"{given.dtype} in the reference, {array.dtype} in the model"]
            yield WeightResult(
                *(path, parameter, stored, num_bits, differing, "; ".join(remarks)),
                num_nan=count_nan(array),
                digests=(own, other),
            )


def _copies(
    table: RuleTable, rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray]
) -> Iterator[WeightResult]:
    """Yields a row for each tensor that is tied to another one according to the table."""
    names = our_names(rules)
    for copy, original in table.tied.items():
        if copy in tensors and original in tensors:
            path, _, parameter = names[original][0].rpartition(".")
            bits = 8 * tensors[copy].nbytes
            differing = differing_bits(tensors[copy], tensors[original])
            remark = f"should be a copy of {original}"
            yield WeightResult(path, parameter, (copy,), bits, differing, remark)


def _places(reference: Any, model: Model) -> dict[str, str]:
    """Returns the JAX parameter of each tensor in a model with the reference's own config."""
    if isinstance(model, FunctionModel):
        return {}
    config, _ = config_of(reference, model)
    if config is None:
        return {}
    table = table_for(reference, config)
    whole = with_scanned_layers(build_abstract(with_fields(config, scan_layers=False)), False)
    return {
        stored: ours[0] for stored, ours in our_names(table.bound(stacked_layers(whole))).items()
    }


def _alone(name: str, tensor: np.ndarray, place: str) -> WeightResult:
    path, _, parameter = place.rpartition(".")
    bits = 8 * tensor.nbytes
    return WeightResult(path, parameter, (name,), bits, bits, "the model has no such tensor")


def differing_bits(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Counts the bits in which two arrays differ; all bits if their shapes or dtypes differ.

    Integers of two widths are compared by value: JAX has none of 64 bits.
    """
    if ours.shape != theirs.shape or not _are_comparable(ours, theirs):
        return 8 * max(ours.nbytes, theirs.nbytes)
    if ours.dtype != theirs.dtype:
        ours, theirs = ours.astype(np.int64), theirs.astype(np.int64)
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (ours, theirs))
    return int(np.bitwise_count(a ^ b).sum(dtype=np.int64))


def _are_comparable(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether both have one dtype, or integers. A cast to one could hide a wrong conversion."""
    return ours.dtype == theirs.dtype or all(x.dtype.kind in INTEGERS for x in (ours, theirs))


def record_weights(comparison: Comparison) -> dict[str, list[str]]:
    """Records the shape and SHA-256 of each of the reference's tensors, in JAX names and layout."""
    arrays = Imported(comparison.rules, tensors_of(comparison.reference))
    return {name: [str(x.shape), digest(x)] for name, x in arrays.items()}


def check_weights(digests: Mapping[str, list[str]], ours: JaxSide) -> list[WeightResult]:
    """Compares the model's arrays with recorded digests.

    Digests do not say how many bits differ. Rows of arrays with other shapes have a remark.
    """
    arrays, rows = LazyWeights(ours.unstacked), []
    for name in dict.fromkeys([*arrays, *digests]):
        array = arrays.get(name)
        shape, recorded = digests.get(name, ["missing", ""])
        path, _, parameter = name.rpartition(".")
        found = "missing" if array is None else str(array.shape)
        bits = 1 if array is None else 8 * array.nbytes
        remark = "" if found == shape else f"{shape} in the reference, {found} in the model"
        own = "" if array is None else digest(array)
        is_same = not remark and own == recorded
        differing = 0 if is_same else bits if remark else None
        num_nan = 0 if array is None else count_nan(array)
        row = WeightResult(path, parameter, (name,), bits, differing, remark)
        rows.append(dataclasses.replace(row, num_nan=num_nan, digests=(own, recorded)))
    return rows


def digests_of(rows: Sequence[WeightResult]) -> dict[str, str]:
    """Returns one digest of all weights of each side, the same for equal weights."""
    named = [(f"{row.path}.{row.parameter}", row.digests) for row in rows if any(row.digests)]
    return both_digests("weights", [(f"{name} {a}", f"{name} {b}") for name, (a, b) in named])


def count_nan(array: np.ndarray) -> int:
    """Counts the values that are not numbers."""
    return int(np.isnan(array.astype(np.float32, copy=False)).sum())


def digest(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's bits and, unless that is float32, of its dtype."""
    array = array.astype(np.int64) if array.dtype.kind in INTEGERS else array
    found = sha256(b"" if array.dtype == np.float32 else f"{array.dtype} ".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _compare_all(comparison: Comparison) -> list[WeightResult]:
    rows = compare_weights(comparison.reference, comparison.unstacked, comparison.table)
    return [*rows, *compare_factors(comparison)]


def compare_factors(comparison: Comparison) -> Iterator[WeightResult]:
    """Yields a row for each of LoRA's factors, of either side."""
    weights = LazyWeights(comparison.unstacked)
    ours = [name for name in weights if is_factor(name)]
    state = dict(comparison.reference.state_dict()) if comparison.factors is not None else {}
    found = {name: x.float().cpu().numpy() for name, x in state.items() if base_name(name) is None}
    theirs = {} if comparison.factors is None else comparison.factors.arrays(found)
    for name in dict.fromkeys([*ours, *theirs]):
        path, _, parameter = name.rpartition(".")
        array = weights.get(name)
        if name not in theirs and array is not None and not array.any():
            continue  # of a layer without factors, in a stack with them
        place = (path, parameter, (name,))
        if array is None or name not in theirs:
            bits = 8 * (theirs[name] if array is None else array).nbytes
            remark = f"only in the {'reference' if array is None else 'model'}"
            yield WeightResult(*place, bits, bits, remark)
            continue
        yield WeightResult(
            *(*place, 8 * array.nbytes, differing_bits(array, theirs[name])),
            num_nan=count_nan(array),
            digests=(digest(array), digest(theirs[name])),
        )


WEIGHTS = Stage(
    name="weights",
    compare=_compare_all,
    record=record_weights,
    check=check_weights,
    digests=digests_of,
    computes=False,
)
