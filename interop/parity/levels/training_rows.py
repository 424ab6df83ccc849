"""Training levels: judges losses, gradients, moments and updates by their distance from float64."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from jaxllm.interop.parity.execution.distances import error_fields
from jaxllm.interop.parity.report.rows import LossResult, TensorResult
from jaxllm.numerics.distance import norm, relative
from jaxllm.numerics.error_vector import ErrorVector, error_of
from jaxllm.numerics.judgement import Spread
from jaxllm.numerics.significance import (
    CHANCE_OF_ARRAY,
    CHANCE_OF_NUMBER,
    NOISE_ONLY,
    spread,
)

from .training import Runs
from .training_errors import INFINITE

AnyRow = TypeVar("AnyRow", TensorResult, LossResult)

MISSING = Spread(0.0, 0.0, 0.0)  # of a parameter that one side lacks
UNKNOWN = Spread(0.0, 0.0, math.inf)  # of what consists of noise


def judge_gradients(runs: Runs) -> list[TensorResult]:
    """Judges the loss of the first batch and the gradient of every parameter."""
    others = [run.losses[0] for run in (runs.theirs, *runs.draws)]
    losses = [runs.ours.losses[0], runs.truth.losses[0], *others]
    return _decided(runs, [_judge_number("batch", "loss", losses), *_judge("gradient", runs)])


def judge_step(runs: Runs) -> list[TensorResult]:
    """Judges the global gradient norm, and both moments and the update of every parameter."""
    norms = [runs.ours.norm, runs.truth.norm, *(x.norm for x in (runs.theirs, *runs.draws))]
    norm_row = _judge_number("gradient", "norm", norms)
    return _decided(runs, [norm_row, *_judge("m", runs), *_judge("v", runs), *_updates(runs)])


def judge_curve(runs: Runs) -> list[LossResult]:
    """Judges the loss of every step. The noise floor of a step is at least that of earlier ones."""
    others = [*(draw.losses for draw in runs.draws), *runs.perturbed]
    rows, scale, limit = [], 0.0, 0.0
    for step, truth in enumerate(runs.truth.losses):
        ours, theirs = runs.ours.losses[step], runs.theirs.losses[step]
        found = _spread_of_numbers(truth, theirs, [losses[step] for losses in others])
        scale, limit = (
            max(x, relative(y, abs(truth))) for x, y in ((scale, found.scale), (limit, found.limit))
        )
        rows.append(LossResult(f"step {step}", ours, theirs, truth, scale, limit, unit=runs.unit))
    return _decided(runs, rows)


def _decided(runs: Runs, rows: list[AnyRow]) -> list[AnyRow]:
    """Returns the rows; with infinite thresholds if rounding sent a token to other experts."""
    if not runs.has_tie:
        return rows
    whole: dict[str, Any] = {"threshold": math.inf}
    if any(isinstance(row, TensorResult) for row in rows):
        whole |= {"outside": None, "whole_threshold": None, "is_suspect": False}
    return [dataclasses.replace(row, **whole) for row in rows]


def _judge_number(path: str, what: str, found: Sequence[float]) -> TensorResult:
    """Judges a number: of the model, of the reference in float64 and float32, and of the draws."""
    ours, truth, theirs, *draws = found
    spread = _spread_of_numbers(truth, theirs, draws)
    return _row(f"{path}.", what, error_of(ours, truth), abs(truth), spread)


def _spread_of_numbers(truth: float, theirs: float, draws: Sequence[float]) -> Spread:
    errors = [error_of(x, truth) for x in (theirs, *draws)]
    return spread(errors[0], errors[1:], CHANCE_OF_NUMBER)


def _judge(what: str, runs: Runs) -> Iterator[TensorResult]:
    """Judges arrays of every parameter: gradients, or moments m and v before clipping."""
    sizes = {name: norm(runs.truth.moment(what, name)) for name in runs.truth.gradient}
    whole = math.hypot(*sizes.values())
    ours = runs.ours.errors[what]
    for name in dict.fromkeys((*ours, *sizes)):
        if name not in ours or name not in sizes:
            yield _row(name, what, INFINITE, 0.0, MISSING)
            continue
        yield _row(name, what, ours[name], sizes[name], _spread_of(what, name, runs), whole)


def _updates(runs: Runs) -> Iterator[TensorResult]:
    """Judges the update of every parameter, at the elements whose gradient is above the noise."""
    truth = runs.truth
    for name, error in runs.ours.errors["update"].items():
        if math.isinf(error.length):
            yield _row(name, "update", error, 0.0, MISSING)
            continue
        counts = truth.compared(name)
        size = norm(truth.update[name][counts])
        if not counts.any():
            yield _row(name, "update", error, size, UNKNOWN, compared=0.0)
            continue
        found = _spread_of("update", name, runs)
        found = found.widened(truth.rounding[name] + truth.recipe.rounding * size)
        yield _row(name, "update", error, size, found, compared=float(counts.mean()))


def _spread_of(what: str, name: str, runs: Runs) -> Spread:
    draws = [draw.errors[what][name] for draw in runs.draws]
    return spread(runs.theirs.errors[what][name], draws, CHANCE_OF_ARRAY)


def _row(
    name: str,
    what: str,
    error: ErrorVector,
    size: float,
    found: Spread,
    whole: float = 0.0,
    compared: float = 1.0,
) -> TensorResult:
    """Builds the row of a parameter, such as `layers.7.mlp.up_proj.kernel`."""
    path, _, parameter = name.rpartition(".")
    relative_to = "own"
    if whole and found.scale > NOISE_ONLY * size:
        size, relative_to = whole, "all"
    return TensorResult(
        path=path,
        parameter=parameter,
        what=what,
        relative_to=relative_to,
        compared=compared,
        **error_fields(error, found, size),
    )
