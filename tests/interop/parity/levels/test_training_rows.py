"""Training rows: thresholds follow the errors of simulated rounding around float64."""

import math

import numpy as np
import pytest

from jaxllm.interop.parity.execution.recipe import Recipe, TrainingRecord
from jaxllm.interop.parity.levels.training import Runs
from jaxllm.interop.parity.levels.training_errors import RunErrors, Truth, errors_of, truth_of
from jaxllm.interop.parity.levels.training_rows import judge_curve, judge_gradients, judge_step

RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal(4000)
RECIPE = Recipe(clip_norm=math.inf)
BEFORE = RNG.standard_normal(4000).astype(np.float32)
NOISE = 1e-6


def noisy(scale=NOISE):
    return TRUTH * (1 + scale * RNG.standard_normal(TRUTH.size))


def record(gradient, losses=(1.0,)):
    rate = 1e-3
    arrays = {"gradient": gradient, "m": 0.1 * gradient, "v": 0.05 * gradient**2}
    arrays["update"] = (BEFORE - rate * np.sign(gradient)).astype(np.float32) - BEFORE
    arrays["parameter"] = BEFORE
    named = {what: {"mlp.kernel": array} for what, array in arrays.items()}
    return TrainingRecord(tuple(losses), float(np.linalg.norm(gradient)), named)


def runs(ours, theirs=None, truth=None, draw=None):
    theirs, truth = theirs or record(noisy()), truth or record(TRUTH)
    truth = truth_of(truth, theirs, RECIPE)
    draws = [errors_of(draw() if draw else record(noisy()), truth) for _ in range(4)]
    return Runs(errors_of(ours, truth, clip_eps=0.0), truth, errors_of(theirs, truth), draws)


def test_the_threshold_of_a_gradient_follows_simulated_rounding():
    [loss, row] = judge_gradients(runs(record(noisy())))
    assert loss.ok
    assert row.verdict == "equal within rounding"
    assert row.floor == pytest.approx(NOISE, rel=0.1)
    assert row.reference == pytest.approx(NOISE, rel=0.1)
    assert row.floor < row.threshold < 2 * row.floor
    [_, suspect] = judge_gradients(runs(record(noisy(2 * NOISE))))
    assert suspect.is_suspect
    [_, wrong] = judge_gradients(runs(record(noisy(30 * NOISE))))
    assert (wrong.path, wrong.parameter, wrong.what) == ("mlp", "kernel", "gradient")
    assert not wrong.ok


def test_moments_and_updates_of_a_correct_model_pass():
    rows = judge_step(runs(record(noisy())))
    assert [row.what for row in rows] == ["norm", "m", "v", "update"]
    assert all(row.verdict == "equal within rounding" for row in rows)


@pytest.mark.parametrize("what", ["m", "v", "update"])
def test_a_wrong_moment_or_update_fails(what):
    wrong = record(noisy())
    wrong.first[what]["mlp.kernel"] = wrong.first[what]["mlp.kernel"] * np.float32(1.001)
    assert [row.what for row in judge_step(runs(wrong)) if not row.ok] == [what]


def test_a_parameter_rounded_the_other_way_is_no_difference():
    """The update of a parameter of about 1 is known to half a unit in its last place."""
    other = record(noisy())
    few = other.first["update"]["mlp.kernel"][::100]
    few += np.spacing(BEFORE[::100])
    assert all(row.ok for row in judge_step(runs(other)))


def test_an_update_of_nothing_but_noise_cannot_be_judged():
    ours, theirs = record(noisy()), record(-TRUTH)
    [row] = [row for row in judge_step(runs(ours, theirs)) if row.what == "update"]
    assert (row.compared, row.verdict) == (0, "cannot tell")
    ours.first["update"]["mlp.kernel"][7] = np.nan
    [row] = [row for row in judge_step(runs(ours, theirs)) if row.what == "update"]
    assert row.verdict == "differs"


def test_a_parameter_that_the_reference_lacks_fails():
    ours = record(noisy())
    for what in ours.first:
        ours.first[what]["extra.bias"] = np.ones(3)
    given = runs(ours)
    found = [*judge_gradients(given), *judge_step(given)]
    assert {(row.path, row.measured) for row in found if not row.ok} == {("extra", math.inf)}


def test_a_parameter_that_the_model_lacks_fails():
    truth = record(TRUTH)
    truth.first["gradient"]["extra.bias"] = np.ones(3)
    theirs = record(noisy())
    theirs.first["gradient"]["extra.bias"] = np.ones(3)
    rows = judge_gradients(runs(record(noisy()), theirs, truth))
    assert [(row.path, row.measured) for row in rows if not row.ok] == [("extra", math.inf)]


def test_a_gradient_of_nothing_but_noise_is_relative_to_all():
    def both():
        found = record(noisy())
        found.first["gradient"]["attn.bias"] = 1e-8 * RNG.standard_normal(50)
        return found

    truth = record(TRUTH)
    truth.first["gradient"]["attn.bias"] = np.full(50, 1e-12)
    row = judge_gradients(runs(both(), both(), truth, both))[-1]
    assert (row.path, row.relative_to) == ("attn", "all")
    assert row.ok
    assert row.measured == pytest.approx(1e-8 * math.sqrt(50 / TRUTH.size), rel=0.4)


def curve(ours, perturbed=()):
    """Judges losses around a truth of ones, with four draws; the rows."""
    ones, noise = np.ones(len(ours)), 1e-7 * RNG.standard_normal((4, len(ours)))
    run, theirs, *draws = (RunErrors(tuple(x), 1.0, {}) for x in (ours, ones, *(ones + noise)))
    truth = Truth(RECIPE, theirs.losses, 1.0, {}, {}, {}, {})
    return judge_curve(Runs(run, truth, theirs, draws, perturbed, "nats per token"))


def test_losses_are_judged_by_their_distance_from_float64():
    rows = curve([1.0, 1 + 1e-7, 1 + 1e-4])
    assert [row.verdict for row in rows] == [*["equal within rounding"] * 2, "differs"]
    assert {row.unit for row in rows} == {"nats per token"}


def test_a_loss_of_zero_has_no_relative_error():
    [row] = judge_curve(runs(record(TRUTH, [0.0]), record(TRUTH, [0.0]), record(TRUTH, [0.0])))
    assert (row.measured, row.verdict) == (0, "cannot tell")  # the draws have other losses
    [row] = judge_curve(runs(record(TRUTH, [1.0]), record(TRUTH, [0.0]), record(TRUTH, [0.0])))
    assert row.verdict == "differs"


def test_perturbed_weights_raise_the_threshold_from_their_step_on():
    late = [1.0, 1.0, 1 + 1e-5, 1.0]
    low, high = curve([1 + 1e-5] * 4), curve([1 + 1e-5] * 4, [late, late])
    assert [row.ok for row in low] == [False] * 4
    assert [row.ok for row in high] == [False, False, True, True]


def test_training_with_a_tie_of_routers_cannot_be_judged():
    given = runs(record(noisy(100 * NOISE)))._replace(has_tie=True)
    rows = [*judge_gradients(given), *judge_step(given), *judge_curve(given)]
    assert {row.verdict for row in rows} == {"cannot tell"}
