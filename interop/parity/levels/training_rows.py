"""Training levels: judges losses, gradients, moments and updates by their distance from float64."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxllm.deviation import joint_norm, norm
from jaxllm.interop.parity.execution.distances import error_fields
from jaxllm.interop.parity.numerics.significance import (
    CHANCE_OF_ARRAY,
    CHANCE_OF_NUMBER,
    Spread,
    error_of,
    spread,
)
from jaxllm.interop.parity.report.rows import LossResult, TensorResult

from .training import CLIP_EPS, POWERS, Runs, compared_elements, unclipped

AnyRow = TypeVar("AnyRow", TensorResult, LossResult)

# Relative error of an update by AdamW's own arithmetic: optax computes both bias corrections in
# float32, where `1 - b2` has lost four bits.
ADAMW_ROUNDING = 2.0**-20

# A gradient of which rounding changes a tenth is the remainder of cancelling sums, such as the
# gradient of a key bias without RoPE. It is measured relative to the norm of all gradients.
NOISE_ONLY = 0.1

MISSING = Spread(0.0, 0.0, 0.0)  # of a parameter that the reference lacks
UNKNOWN = Spread(0.0, 0.0, math.inf)  # of what consists of noise


def judge_gradients(runs: Runs) -> list[TensorResult]:
    """Judges the loss of the first batch and the gradient of every parameter."""
    losses = [run.losses[0] for run in (runs.ours, runs.truth, runs.theirs, *runs.draws)]
    return _decided(runs, [_judge_number("batch", "loss", losses), *_judge("gradient", runs)])


def judge_step(runs: Runs) -> list[TensorResult]:
    """Judges the global gradient norm, and both moments and the update of every parameter."""
    norms = [run.norm for run in (runs.ours, runs.truth, runs.theirs, *runs.draws)]
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
            max(x, y / abs(truth)) for x, y in ((scale, found.scale), (limit, found.limit))
        )
        rows.append(LossResult(f"step {step}", ours, theirs, truth, scale, limit, unit=runs.unit))
    return _decided(runs, rows)


def _decided(runs: Runs, rows: list[AnyRow]) -> list[AnyRow]:
    """Returns the rows; with infinite thresholds if rounding sent a token to other experts."""
    if not runs.has_tie:
        return rows
    whole: dict[str, Any] = {"threshold": math.inf}
    if any(isinstance(row, TensorResult) for row in rows):
        whole |= {"outside": None, "whole_threshold": None}
    return [dataclasses.replace(row, **whole) for row in rows]


def _judge_number(path: str, what: str, found: Sequence[float]) -> TensorResult:
    """Judges a number: of the model, of the reference in float64 and float32, and of the draws."""
    ours, truth, theirs, *draws = found
    return _row(f"{path}.", what, ours, truth, _spread_of_numbers(truth, theirs, draws))


def _spread_of_numbers(truth: float, theirs: float, draws: Sequence[float]) -> Spread:
    errors = [error_of(x, truth) for x in (theirs, *draws)]
    return spread(errors[0], errors[1:], CHANCE_OF_NUMBER)


def _judge(what: str, runs: Runs) -> Iterator[TensorResult]:
    """Judges arrays of every parameter: gradients, or moments m and v before clipping."""
    power = POWERS[what]
    norms = (runs.ours.norm, runs.truth.norm + CLIP_EPS, runs.theirs.norm + CLIP_EPS)
    scales = [unclipped(x, power, runs.clip_norm) for x in norms]
    arrays = [run.first[what] for run in (runs.ours, runs.truth, runs.theirs)]
    whole = scales[1] * joint_norm(arrays[1].values())
    for name in arrays[0]:
        if name not in arrays[1]:
            yield _row(name, what, math.inf, 0.0, MISSING)
            continue
        ours, truth, theirs = (x * named[name] for x, named in zip(scales, arrays, strict=True))
        draws = [draw.errors[what][name] for draw in runs.draws]
        found = spread(error_of(theirs, truth), draws, CHANCE_OF_ARRAY)
        yield _row(name, what, ours, truth, found, whole)


def _updates(runs: Runs) -> Iterator[TensorResult]:
    """Judges the update of every parameter, at the elements whose gradient is above the noise."""
    for name in runs.ours.first["update"]:
        is_finite = np.isfinite(runs.ours.first["update"][name]).all()
        if name not in runs.truth.first["update"] or not is_finite:
            yield _row(name, "update", math.inf, 0.0, MISSING)
            continue
        counts = compared_elements(name, runs.theirs, runs.truth)
        ours, truth, theirs = (
            run.first["update"][name][counts] for run in (runs.ours, runs.truth, runs.theirs)
        )
        draws = [draw.errors["update"][name] for draw in runs.draws]
        if not counts.any():
            yield _row(name, "update", ours, truth, UNKNOWN, compared=0.0)
            continue
        found = spread(error_of(theirs, truth), draws, CHANCE_OF_ARRAY)
        # The update is the difference of two parameters. Each is rounded, nearly always alike.
        before = runs.theirs.first["parameter"][name][counts]
        halves = 0.5 * np.spacing(np.maximum(np.abs(before), np.abs(before + theirs)))
        more = norm(halves) + ADAMW_ROUNDING * norm(truth)
        found = found._replace(limit=found.limit + more, rest_limit=found.rest_limit + more)
        yield _row(name, "update", ours, truth, found, compared=float(counts.mean()))


def _row(
    name: str,
    what: str,
    ours: np.ndarray | float,
    truth: np.ndarray | float,
    found: Spread,
    whole: float = 0.0,
    compared: float = 1.0,
) -> TensorResult:
    """Builds the row of a parameter, such as `layers.7.mlp.up_proj.kernel`."""
    path, _, parameter = name.rpartition(".")
    error = error_of(ours, truth)
    size, relative_to = norm(truth), "own"
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
