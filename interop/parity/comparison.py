"""Compares a model with its reference level by level, against the reference's rounding noise."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import optax

from jaxllm.errors import UserError
from jaxllm.models import Model
from jaxllm.numerics.judgement import ENOUGH
from jaxllm.numerics.significance import FALSE_ALARMS

from .alignment.adapters import adapter_of
from .alignment.function_model import FunctionModel, JaxFunction
from .alignment.inputs import Inputs, output_config
from .alignment.plain_modules import with_rules
from .alignment.references.peft_models import opened
from .execution.jax_trace import PRECISION
from .execution.recipe import Recipe
from .execution.simulated_rounding import DRAWS
from .levels.level import Level, Stage
from .levels.sides import Comparison
from .levels.table import (
    LEVELS,
    from_causes_to_effects,
    levels_of,
    levels_without_computation,
    not_compared,
    select_levels,
    stages_of,
)
from .levels.weights import shape_mismatches
from .memory.array_store import ArrayStore, in_memory
from .memory.malloc import keeping_freed_memory, return_scarce_memory
from .numerics.precision import FLOAT32, PRECISIONS, computed_in, dtype_name
from .progress import expecting
from .rendered_report import Report
from .report.judged import Judged

PACKAGES = ("jaxllm", "jax", "flax", "numpy", "optax")
DRAWS_TO_DECIDE = ENOUGH - 1  # the reference in float32 is one more
TOLERANCE = {"false_alarms": FALSE_ALARMS, "draws": DRAWS, "draws_to_decide": DRAWS_TO_DECIDE}


def compare(
    reference: Any,
    model: Model | JaxFunction,
    inputs: np.ndarray | Inputs,
    *,
    levels: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    optimizer: optax.GradientTransformation | None = None,
    store: ArrayStore = in_memory,
    rules: Any = None,
    recordings: dict[str, Any] | None = None,
) -> Report:
    """Compares a JAX model with a PyTorch reference and reports where they first diverge.

    Both run in one dtype, at the training and generation levels float32. Weights must be equal bit
    for bit and configs field by field. Everything else is judged by its distance from the reference
    in float64: it must be no larger than rounding may cause, which is measured by running the
    reference with simulated rounding. Every activation is compared twice: after all preceding ones,
    and on its own, computed from the reference's activations. If sizes differ, only config and
    weights are compared, and all other levels fail.

    Args:
        reference: a causal language model or an encoder-decoder of transformers, a PeftModel of one
            (training trains its LoRA), a model of `jaxllm.interop.reference` or, with rules, any
            `torch.nn.Module`. Not changed.
        model: the JAX model, its layers stacked or not, or a `JaxFunction` of parameters and
            tokens, which has rules of its own. Not changed.
        inputs: token ids, BT, or vectors, BTI, or `Inputs` with source and target. Some errors in
            positions show only beyond a few hundred tokens. Padding is not compared.
        levels: of weights, config, logits, layers, gradients, step, curve and generate, which
            docs/parity.md explains; by default all that exist for the model.
        recipe: the training recipe of both sides; by default 20 steps of AdamW.
        optimizer: another implementation of the recipe for the JAX side.
        store: the store for all activations.
        rules: rules of a custom reference (docs/rules.md): a Python file, which is run, or an
            object with the same attributes. Their `config` reads the config file that `model` was
            loaded with or, if by other rules, the result of their `fields` for its config.
        recordings: an empty dict, filled so that later comparisons need not run the reference.

    Raises:
        CheckpointError: the rules cannot be read, or give no fields for their `config` to read.
        UserError: a level is unknown or does not exist in this dtype, the two sides have different
            dtypes, the reference's family has no rules, or the tokens are not in the vocabulary.
    """
    given = Inputs.of(inputs)
    with opened(reference) as inside:
        compared, context = _prepare(inside, model, given, rules)
        comparison = Comparison(
            reference=inside,
            model=compared,
            inputs=given.with_labels(compared),
            levels=select_levels(levels, levels_of(compared)),
            recipe=recipe or Recipe(),
            optimizer=optimizer,
            store=store,
            recordings=recordings,
        )
        with context:
            _check(inside, compared, comparison.inputs)
            return _compare(comparison)


def _prepare(
    reference: Any, model: Model | JaxFunction, inputs: Inputs, rules: Any
) -> tuple[Any, AbstractContextManager[Any]]:
    """Returns the model that the levels take, and the context in which the reference runs."""
    if not isinstance(model, JaxFunction):
        own = nullcontext() if rules is None else with_rules(reference, model, rules)
        return model, own
    if rules is not None:
        raise UserError("rules= is for models of jaxllm: a JaxFunction has rules of its own")
    found = FunctionModel(model, reference, inputs.target)
    return found, found.calling(reference)


def _compare(comparison: Comparison) -> Report:
    stages = stages_of(comparison.levels)
    alone = levels_without_computation(levels_of(comparison.model))
    is_computed = any(stage.computes for stage in stages)
    if is_computed:  # weights and config are read in any case, for their digests
        stages = stages_of([*alone, *comparison.levels])
    if is_computed and shape_mismatches(
        comparison.reference, comparison.unstacked, comparison.table
    ):
        stages = stages_of(alone)
    runs = sum(stage.runs(comparison.levels, comparison.draws) for stage in stages)
    with expecting(runs), keeping_freed_memory():
        found: dict[str, Any] = {}
        rows: dict[str, tuple[Judged, ...]] = {}
        for stage in stages:
            found[stage.name] = stage.compare(comparison)
            return_scarce_memory()
            judged = rows | _rows_of(stage, comparison.levels, found)
            if _needs_more_draws(judged):
                del found[stage.name]  # as large as the model
                found[stage.name] = _decide(stage, comparison)
                judged = rows | _rows_of(stage, comparison.levels, found)
            rows = judged
    name = type(comparison.reference).__name__
    packages = "torch", "transformers"
    dtype = output_config(comparison.model).numerics.dtype
    report = assemble(name, comparison.inputs, comparison.levels, found, packages, dtype, rows)
    others = not_compared(comparison.model, comparison.levels, is_default=False)
    return dataclasses.replace(report, not_compared=others)


def _decide(stage: Stage, comparison: Comparison) -> Any:
    """Returns the result of a stage by so many draws that no row is suspect."""
    again = dataclasses.replace(comparison, draws=DRAWS_TO_DECIDE)
    with expecting(stage.runs(comparison.levels, again.draws), besides=True):
        return stage.compare(again)


def assemble(
    subject: str,
    inputs: Inputs,
    levels: Sequence[str],
    found: Mapping[str, Any],
    packages: Sequence[str] = (),
    dtype: str = FLOAT32.dtype,
    judged: Mapping[str, tuple[Judged, ...]] | None = None,
) -> Report:
    """Builds the report: judges the result of each stage at its levels.

    Args:
        subject: name of what was compared.
        inputs: the inputs of the comparison.
        levels: the levels asked for. A level whose stage was not run fails; the report then has
            the rows of all stages that were run.
        found: results of the stages, by stage name.
        packages: packages, besides those in `PACKAGES`, whose versions are reported.
        dtype: that both sides compute in.
        judged: rows that are known already, by level.
    """
    unjudged = tuple(level for level in levels if LEVELS[level].stage.name not in found)
    rows, known = {}, dict(judged or {})
    for level in from_causes_to_effects():
        is_wanted = level.name in levels or unjudged
        own = known.get(level.name) or (_rows(level, found) if is_wanted else ())
        rows[level.name] = own
    if not all(row.ok for found_rows in rows.values() for row in found_rows):
        rows = {name: tuple(row.convicted() for row in own) for name, own in rows.items()}
    stages = (stage for stage in stages_of(LEVELS) if stage.name in found)
    details: dict[str, Any] = {"tokens": inputs.num_tokens, "versions": {}}
    digests: dict[str, str] = {}
    for stage in stages:
        details |= stage.details(found[stage.name])
        digests |= stage.digests(found[stage.name])
    batch_size, length = inputs.target.shape[:2]
    return Report(
        subject=subject,
        verdicts={
            level: bool(rows[level]) and all(row.ok for row in rows[level]) for level in levels
        },
        rows=rows,
        unjudged=unjudged,
        batch_size=batch_size,
        length=length,
        seed=None,
        dtype=dtype,
        dtypes={
            "reference": f"{dtype}, plain attention",
            "model": f"{dtype}, matmul precision {PRECISION}",
            "metrics": "float64",
        },
        tolerance=TOLERANCE,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        digests=digests,
        **{**details, "versions": _versions(packages) | details["versions"]},
    )


def _rows_of(
    stage: Stage, levels: Sequence[str], found: Mapping[str, Any]
) -> dict[str, tuple[Judged, ...]]:
    """Returns the rows of those levels that are judged by a stage."""
    own = (name for name in levels if LEVELS[name].stage is stage)
    return {name: _rows(LEVELS[name], found) for name in own}


def _needs_more_draws(rows: Mapping[str, Sequence[Judged]]) -> bool:
    """Whether some rows are suspect, and none certainly differs."""
    every = [row for own in rows.values() for row in own]
    return all(row.ok for row in every) and any(row.is_suspect for row in every)


def _rows(level: Level, found: Mapping[str, Any]) -> tuple[Judged, ...]:
    """Returns the rows of a level; none if its stage was not run."""
    stage = level.stage.name
    return tuple(level.rows(found[stage])) if stage in found else ()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of Python, `PACKAGES` and `packages`, and the device."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in (*PACKAGES, *packages)},
        "device": jax.devices()[0].device_kind,
    }


def _check(reference: Any, model: Model, inputs: Inputs) -> None:
    """Rejects dtypes and inputs that cannot be compared."""
    _check_dtypes(reference, model)
    if problems := inputs.problems(model, adapter_of(reference).masks(reference)):
        raise UserError("; ".join(problems))


def _check_dtypes(reference: Any, model: Model) -> None:
    """Rejects sides that do not compute in one and the same dtype."""
    found = set(map(dtype_name, reference.parameters()))
    theirs, ours = computed_in(found), output_config(model).numerics.dtype
    if theirs is None:
        raise UserError(
            f"the parameters of the reference are {', '.join(sorted(found)) or 'missing'}; they "
            f"must be in one dtype of {', '.join(PRECISIONS)}: convert it with .float()"
        )
    if ours != theirs.dtype:
        raise UserError(
            f"the model computes in dtype={ours!r}, the reference in {theirs.dtype}: load the "
            f'model with dtype="{theirs.dtype}"'
        )
