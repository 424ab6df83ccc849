"""Two checkpoints against each other: what a fine-tune changed, or what a third party altered."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.loading.allowances import allowance_notes
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.interop.loading.model_arrays import ModelArrays, open_model_arrays
from jaxllm.models import Model

from .alignment.inputs import Inputs, draw
from .alignment.prompt import tokenizer_of
from .comparison import assemble
from .execution.jax_trace import trace_model
from .levels.config import CONFIG, compare_configs
from .levels.weights import WEIGHTS, count_nan, differing_bits, digest
from .numerics import metrics
from .progress import announce
from .rendered_report import Report
from .report.activation_rows import LOGITS
from .report.rows import OutputResult, WeightResult

LEVELS = ("config", "weights", "logits")
BY_DEFAULT = ("config", "weights")
NOTE = "The model is {}; the reference is {}. Both were run and read by jaxllm."


def compare_checkpoints(
    path: str | Path,
    other: str | Path,
    *,
    levels: Sequence[str] | None = None,
    tokens: np.ndarray | Inputs | None = None,
    num_tokens: int = 320,
    seed: int = 0,
    rules: Any = None,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> Report:
    """Compares two checkpoints of any formats: configs, weights bit by bit, and outputs.

    Args:
        path: a checkpoint, called the model in the report.
        other: the checkpoint to compare it with, called the reference.
        levels: some of config, weights and logits; by default config and weights. For logits,
            both are run in float32 on the same inputs.
        tokens: what to run them on; by default drawn from the seed, as for `check_checkpoint`.
        num_tokens: length of each row of drawn inputs.
        seed: seed of drawn inputs.
        rules: conversion rules of a custom model, see docs/rules.md.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Returns:
        The report. There is no tolerance: `report.ok` says whether nothing at all differs.

    Raises:
        CheckpointError: a checkpoint is damaged or not understood.
        UserError: a level is unknown, or the two cannot be run on the same inputs.
    """
    chosen = BY_DEFAULT if levels is None else tuple(levels)
    _check_levels(chosen)
    paths = [local_path(path), local_path(other)]
    announce("reading both checkpoints")
    options: dict[str, Any] = {"rules": rules, "strict": strict, "allow": allow}
    ours, theirs = (open_model_arrays(one, **options) for one in paths)
    found: dict[str, Any] = {
        CONFIG.name: compare_configs(ours.config, theirs.config),
        WEIGHTS.name: list(_weights(_by_layer(ours), _by_layer(theirs))),
    }
    outputs: tuple[OutputResult, ...] = ()
    inputs = Inputs.of(np.zeros((1, 1), np.int32))  # stands for none
    if "logits" in chosen:
        models = [load_pretrained(one, dtype="float32", **options) for one in paths]
        inputs = _inputs(models, paths[0], tokens, num_tokens, seed)
        outputs = (_outputs(models, inputs),)
    report = assemble(paths[0].name, inputs, [one for one in chosen if one != "logits"], found)
    rows = {**report.rows, **({"logits": outputs} if outputs else {})}
    return dataclasses.replace(
        report,
        rows=rows,
        verdicts={level: all(row.ok for row in rows[level]) for level in chosen},
        tokens=inputs.num_tokens if outputs else 0,
        inputs="given inputs" if tokens is not None else "drawn inputs",
        seed=None if tokens is not None or not outputs else seed,
        **_texts(paths, allow),
    )


def _texts(paths: Sequence[Path], allow: Sequence[str]) -> dict[str, Any]:
    """Returns what the report says about the two checkpoints."""
    where = [str(one.resolve()) for one in paths]
    return {
        "subject": f"{paths[0].name} against {paths[1].name}",
        "notes": (NOTE.format(*where), *allowance_notes(allow)),
        "headlines": ("The checkpoints are equal", "The checkpoints differ"),
        "paths": dict(zip(("model", "reference"), where, strict=True)),
    }


def _check_levels(chosen: Sequence[str]) -> None:
    if unknown := [level for level in chosen if level not in LEVELS]:
        raise UserError(
            f"{', '.join(unknown)}: two checkpoints are compared at the levels {', '.join(LEVELS)}"
        )


def _by_layer(model: ModelArrays) -> dict[str, TensorSource]:
    """Returns the arrays of a model with those of stacked layers cut into one for each layer."""
    found = dict(model.arrays)
    for path, stacks in model.stacks.items():
        for label, positions in stacks.items():
            prefix = f"{path}.{label}."
            inside = [name for name in found if name.startswith(prefix)]
            for name in inside if len(positions) > 1 else ():
                whole = found.pop(name)
                for at, position in enumerate(positions):
                    own = f"{path}.{position}.{name.removeprefix(prefix)}"
                    found[own] = TensorSource(
                        whole.dtype, whole.shape[1:], partial(_read_layer, whole, at)
                    )
    return found


def _read_layer(stacked: TensorSource, at: int, box: Any) -> np.ndarray:
    return stacked.read([(at, at + 1), *box])[0]


def _weights(
    ours: Mapping[str, TensorSource], theirs: Mapping[str, TensorSource]
) -> Iterator[WeightResult]:
    """Yields a row for each array of either checkpoint."""
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(name), theirs.get(name)
        path, _, parameter = name.rpartition(".")
        bits = 8 * (one or other).nbytes  # type: ignore[union-attr] # one of them has it
        place = (path, parameter, (name,), bits)
        if one is None or other is None:
            remark = f"only in the {'reference' if one is None else 'model'}"
            yield WeightResult(*place, bits, remark)
            continue
        if one.shape != other.shape:
            remark = f"{other.shape} in the reference, {one.shape} in the model"
            yield WeightResult(*place, bits, remark)
            continue
        a, b = one.read(one.whole), other.read(other.whole)
        changed, remark = differing_bits(a, b), ""
        if changed:
            remark = f"relative L2 of the change {metrics.masked_relative_l2(a, b):.1e}"
        if one.dtype != other.dtype:
            remark = f"{one.dtype} in the model, {other.dtype} in the reference; {remark}".rstrip(
                "; "
            )
            changed = changed or bits
        yield WeightResult(
            *place, changed, remark, num_nan=count_nan(a), digests=(digest(a), digest(b))
        )


def _inputs(
    models: Sequence[Model],
    path: Path,
    tokens: np.ndarray | Inputs | None,
    num_tokens: int,
    seed: int,
) -> Inputs:
    """Returns inputs that both models take."""
    if tokens is not None:
        inputs = Inputs.of(tokens)
    else:
        tokenizer = tokenizer_of(path)
        inputs = draw(
            models[0], (), num_tokens=num_tokens, batch_size=1, seed=seed, tokenizer=tokenizer
        )
    problems = [problem for model in models for problem in inputs.problems(model, ())]
    if problems:
        raise UserError("the two cannot be run on the same inputs: " + "; ".join(problems))
    return inputs


def _outputs(models: Sequence[Model], inputs: Inputs) -> OutputResult:
    """Runs both models and returns how far apart their outputs are."""
    announce("running both checkpoints")
    ours, theirs = (trace_model(model, inputs, ())[LOGITS] for model in models)
    row = OutputResult(
        path="logits",
        relative_l2=metrics.masked_relative_l2(ours, theirs),
        max_abs=metrics.masked_max_abs(ours, theirs),
    )
    if not inputs.are_tokens:
        return row
    kl, same = metrics.kl_per_token(ours, theirs), metrics.top1_agrees(ours, theirs)
    return dataclasses.replace(
        row, kl_mean=float(kl.mean()), kl_max=float(kl.max()), top1_agreement=float(same.mean())
    )
