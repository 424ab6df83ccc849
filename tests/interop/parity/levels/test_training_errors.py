"""Training errors: moments derived from the gradient, clipping undone, updates above the noise."""

import math

import numpy as np
import pytest

from jaxllm.interop.parity.execution.recipe import Recipe, TrainingRecord
from jaxllm.interop.parity.levels.training_errors import (
    CLIP_EPS,
    errors_of,
    truth_of,
    unclipped,
)

RNG = np.random.default_rng(0)
RECIPE = Recipe(b1=0.9, b2=0.95, clip_norm=0.5)
GRADIENT = RNG.standard_normal(2000)
BEFORE = RNG.standard_normal(2000).astype(np.float32)


def record(gradient, moments=True):
    """A run whose moments are those that AdamW has after a clipped first step."""
    norm = float(np.linalg.norm(gradient))
    clipped = gradient * min(1.0, RECIPE.clip_norm / (norm + CLIP_EPS))
    first = {"gradient": gradient, "update": -1e-3 * np.sign(gradient).astype(np.float32)}
    first |= {"m": 0.1 * clipped, "v": 0.05 * clipped**2} if moments else {}
    first["parameter"] = BEFORE
    return TrainingRecord((1.0,), norm, {what: {"kernel": x} for what, x in first.items()})


def test_moments_of_the_truth_follow_from_its_gradient():
    truth = truth_of(record(GRADIENT, moments=False), record(GRADIENT), RECIPE)
    errors = errors_of(record(GRADIENT), truth).errors
    for what in ("gradient", "m", "v"):
        assert errors[what]["kernel"].length < 1e-12
    assert truth.moment("v", "kernel") == pytest.approx(0.05 * GRADIENT**2)


def test_clipping_by_another_norm_moves_no_moment():
    truth = truth_of(record(GRADIENT, moments=False), record(GRADIENT), RECIPE)
    run = record(GRADIENT)
    norm = 1.001 * run.norm  # with an error of its own, as float32 has in large models
    factor = run.norm / norm
    moved = {
        **run.first,
        "m": {"kernel": run.first["m"]["kernel"] * factor},
        "v": {"kernel": run.first["v"]["kernel"] * factor**2},
    }
    errors = errors_of(TrainingRecord(run.losses, norm, moved), truth).errors
    assert max(errors[what]["kernel"].length for what in ("m", "v")) < 1e-8
    assert [unclipped(2.0, what, 0.5) for what in ("gradient", "m", "v")] == [1, 4, 16]


def test_updates_are_compared_where_the_gradient_exceeds_its_noise():
    noisy = GRADIENT.copy()
    noisy[0] += 1e-3  # the largest error
    truth = truth_of(record(GRADIENT, moments=False), record(noisy), RECIPE)
    assert truth.noise == {"kernel": pytest.approx(1e-3)}
    np.testing.assert_array_equal(truth.compared("kernel"), np.abs(GRADIENT) > 1.0)
    wrong = record(GRADIENT)
    wrong.first["update"]["kernel"][np.abs(GRADIENT) < 1] *= -1  # where it is noise
    assert errors_of(wrong, truth).errors["update"]["kernel"].length == 0
    wrong.first["update"]["kernel"][np.argmax(GRADIENT)] *= -1
    assert errors_of(wrong, truth).errors["update"]["kernel"].length == pytest.approx(2e-3)


def test_what_the_truth_lacks_and_what_is_not_finite_has_an_infinite_error():
    truth = truth_of(record(GRADIENT, moments=False), record(GRADIENT), RECIPE)
    wrong = record(GRADIENT)
    wrong.first["gradient"]["bias"] = np.ones(3)
    wrong.first["update"]["kernel"][0] = np.nan
    errors = errors_of(wrong, truth).errors
    assert errors["gradient"]["bias"].length == math.inf
    assert errors["update"]["kernel"].length == math.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # that of updates in float64
def test_an_update_may_be_rounded_to_its_neighbours(dtype):
    wide = record(GRADIENT, moments=False)
    wide.first["update"]["kernel"] = wide.first["update"]["kernel"].astype(dtype)
    truth = truth_of(wide, record(GRADIENT), RECIPE)
    after = np.abs(BEFORE + truth.update["kernel"].astype(np.float32))
    spacing = np.spacing(np.maximum(np.abs(BEFORE), after)).astype(np.float64)
    assert truth.rounding["kernel"] == pytest.approx(0.5 * np.linalg.norm(spacing))


def test_a_few_neighbours_are_allowed_in_the_smallest_parameter():
    run = record(GRADIENT)
    first = {what: {"bias": arrays["kernel"][:3]} for what, arrays in run.first.items()}
    few = TrainingRecord(run.losses, run.norm, first)
    truth = truth_of(few, few, RECIPE)
    assert truth.rounding["bias"] >= 2 * np.spacing(np.abs(BEFORE[:3]).max())
