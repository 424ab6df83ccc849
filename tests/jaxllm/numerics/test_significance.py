"""Significance: correct results exceed their limits as rarely as said, and others do."""

import numpy as np
import pytest

from jaxllm.numerics.error_vector import error_of
from jaxllm.numerics.significance import consensus, spread

CHANCE = 0.02
TRIALS = 3000


def share_beyond(draw, chance=CHANCE, draws=4):
    """The share of trials in which a correct result exceeds one of its limits."""
    rng, beyond = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        found = spread_of([error_of(draw(rng)) for _ in range(draws + 1)], chance)
        beyond += not is_accepted(found, error_of(draw(rng)))
    return beyond / TRIALS


def is_accepted(found, error):
    return found.judge(error).is_within


def spread_of(errors, chance=1e-7):
    return spread(errors[0], errors[1:], chance)


def in_directions(count, scale=0.0):
    """An error whose energy is in a few directions, and elsewhere as much as `scale`."""
    basis = np.random.default_rng(9).standard_normal((count, 300))
    return lambda rng: rng.standard_normal(count) @ basis + scale * rng.standard_normal(300)


@pytest.mark.cases(2, exhaustive=3)
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.standard_normal(1),
        lambda rng: rng.standard_normal() * np.arange(1.0, 50.0),
        in_directions(3),
        in_directions(1, 0.01),
        in_directions(2, 0.3),
        in_directions(6, 0.01),
        lambda rng: rng.standard_normal(500),
    ],
    ids=[
        "a number",
        "one direction",
        "three directions",
        "one and noise",
        "two and noise",
        "more than draws",
        "independent elements",
    ],
)
def test_false_alarms_are_as_rare_as_promised(draw):
    assert share_beyond(draw) <= 1.5 * CHANCE + 0.005


def test_independent_elements_leave_little_room():
    rng = np.random.default_rng(0)
    truth = np.ones(20_000)
    errors = [error_of(truth + 1e-7 * rng.standard_normal(20_000), truth) for _ in range(5)]
    found = spread_of(errors)
    assert found.scale == pytest.approx(1e-7 * np.sqrt(20_000), rel=0.02)
    assert found.scale < found.limit < 2 * found.scale
    assert found.direction is None
    one_direction = [error_of(truth * (1 + 1e-7 * x), truth) for x in rng.standard_normal(5)]
    wide = spread_of(one_direction)
    assert wide.limit > 20 * wide.scale


def test_a_mistake_outside_of_the_directions_of_rounding_is_seen():
    """Rounding moves all elements together; a mistake a tenth as large moves some of them."""
    rng = np.random.default_rng(0)
    together, truth = rng.standard_normal(5000), np.zeros(5000)

    def rounded():
        return rng.standard_normal() * together + 1e-3 * rng.standard_normal(5000)

    found = spread_of([error_of(rounded(), truth) for _ in range(5)])
    assert is_accepted(found, error_of(rounded(), truth))
    mistake = 0.1 * np.linalg.norm(together) * rng.standard_normal(5000) / np.sqrt(5000)
    wrong = error_of(rounded() + mistake, truth)
    assert wrong.length < found.limit
    assert not is_accepted(found, wrong)
    judged = found.judge(wrong)
    assert judged.measured == pytest.approx(np.linalg.norm(mistake), rel=0.5)
    assert judged.whole_threshold == found.limit
    assert judged.threshold == found.rest_limit < 0.1 * found.scale
    along = found.judge(error_of(found.limit * together, truth))
    assert (along.whole_threshold, along.threshold) == (None, found.limit)
    wider = found.widened(2.0)
    assert (wider.limit, wider.rest_limit) == (found.limit + 2, found.rest_limit + 2)


def test_the_reference_counts_as_a_draw_unless_draws_do_not_explain_it():
    draws = [error_of(x) for x in (np.full(3, 0.1), np.full(3, -0.1))]
    found = spread(error_of(np.full(3, 0.3)), draws, CHANCE)
    assert found.scale == pytest.approx(np.sqrt(3 * (0.01 + 0.01 + 0.09) / 3))
    far = error_of(np.array([0.0, 2000.0, 0.0]))
    assert spread(far, draws, CHANCE)[:2] == (2000.0, 2000.0)


def test_no_rounding_at_all_leaves_no_room():
    found = spread_of([error_of(np.ones(5), np.ones(5))] * 3)
    assert (found.scale, found.limit, found.direction) == (0, 0, None)


def test_draws_that_are_not_finite_leave_everything_open():
    for last in (float("nan"), float("inf"), 1e39):
        errors = [error_of(x) for x in (1e-7, 1e-7, last)]
        assert spread_of(errors).limit == float("inf")


def test_an_error_in_one_column_of_a_wide_matrix_has_many_parts():
    rng = np.random.default_rng(0)
    draws = np.zeros((5, 2048, 1024))
    draws[:, :, 5] = rng.standard_normal((5, 2048))
    found = spread_of([error_of(draw) for draw in draws])
    assert found.limit < 2.5 * found.scale


def test_what_simulated_rounding_leaves_out_is_judged_by_a_scale_alone():
    """All draws have the error of the reference, and next to nothing besides."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal(5000)
    errors = [error_of(own + x) for x in (0, *(1e-3 * rng.standard_normal((4, 5000))))]
    found = spread_of(errors)
    other = error_of(2 * rng.standard_normal(5000))
    assert is_accepted(found, other)
    assert found.scale == pytest.approx(np.linalg.norm(own))


@pytest.mark.cases(1)
@pytest.mark.parametrize("parts", [1, 3, 500])
def test_equivalent_evaluations_differ_as_rarely_as_promised(parts):
    rng, beyond = np.random.default_rng(0), 0
    basis, truth = rng.standard_normal((parts, 500)), rng.standard_normal(500)
    for _ in range(TRIALS):
        evaluations = truth + rng.standard_normal((8, parts)) @ basis
        found = consensus(evaluations[:-1], CHANCE)
        beyond += not is_accepted(found.spread, found.error_of(evaluations[-1]))
    assert beyond / TRIALS <= 1.5 * CHANCE + 0.005


def test_a_mistake_among_equivalent_evaluations_is_seen():
    rng = np.random.default_rng(0)
    evaluations = 5 + 1e-6 * rng.standard_normal((7, 3000))
    found = consensus(evaluations[:-1], 1e-7)
    assert found.mean == pytest.approx(evaluations[:-1].mean(axis=0), rel=1e-12)
    assert found.spread.scale == pytest.approx(1e-6 * np.sqrt(3000), rel=0.05)
    assert is_accepted(found.spread, found.error_of(evaluations[-1]))
    assert not is_accepted(found.spread, found.error_of(evaluations[-1] + 2e-6))
    evaluations[0, 0] = np.nan
    assert consensus(evaluations, 1e-7).spread.limit == float("inf")
