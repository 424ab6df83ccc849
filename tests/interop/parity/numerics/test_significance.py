"""Significance: correct results exceed their limits as rarely as said, and others do."""

import numpy as np
import pytest

from jaxllm.interop.parity.numerics.significance import SKETCH, error_of, spread

CHANCE = 0.02
TRIALS = 3000


def share_beyond(draw, chance=CHANCE, draws=4):
    """The share of trials in which a correct result exceeds its limit."""
    rng, beyond = np.random.default_rng(0), 0
    truth = np.zeros_like(draw(rng))
    for _ in range(TRIALS):
        found = spread(0.0, [error_of(draw(rng), truth) for _ in range(draws)], chance)
        beyond += np.linalg.norm(draw(rng)) > found.limit
    return beyond / TRIALS


def few_parts(rng):
    """An error whose energy is in three directions."""
    basis = np.random.default_rng(9).standard_normal((3, 300))
    return rng.standard_normal(3) @ basis


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.standard_normal(1),
        lambda rng: rng.standard_normal() * np.arange(1.0, 50.0),
        few_parts,
        lambda rng: rng.standard_normal(500),
    ],
    ids=["a number", "one direction", "three directions", "independent elements"],
)
def test_false_alarms_are_as_rare_as_promised(draw):
    assert share_beyond(draw) <= 1.5 * CHANCE + 0.005


def test_independent_elements_leave_little_room():
    rng = np.random.default_rng(0)
    truth = np.ones(20_000)
    errors = [error_of(truth + 1e-7 * rng.standard_normal(20_000), truth) for _ in range(4)]
    found = spread(0.0, errors, 1e-7)
    assert found.scale == pytest.approx(1e-7 * np.sqrt(20_000), rel=0.02)
    assert found.scale < found.limit < 1.5 * found.scale
    one_direction = [error_of(truth * (1 + 1e-7 * x), truth) for x in rng.standard_normal(4)]
    wide = spread(0.0, one_direction, 1e-7)
    assert wide.limit > 20 * wide.scale


def test_a_sketch_keeps_lengths_and_angles():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50_000)) * np.linspace(0, 1, 50_000)
    b = 0.6 * a + 0.8 * b
    one, other = error_of(a, 0 * a), error_of(b, 0 * b)
    assert one.length == pytest.approx(np.linalg.norm(a))
    assert one.sketch.shape == (SKETCH,)
    assert np.linalg.norm(one.sketch) == pytest.approx(one.length, rel=0.15)
    cosine = one.sketch @ other.sketch / np.linalg.norm(one.sketch) / np.linalg.norm(other.sketch)
    assert cosine == pytest.approx(0.6, abs=0.1)


def test_the_reference_itself_counts():
    draws = [error_of(x, np.zeros(3)) for x in (np.full(3, 0.1), np.full(3, -0.1))]
    assert spread(2.0, draws, CHANCE)[:2] == (2.0, 2.0)


def test_no_rounding_at_all_leaves_no_room():
    draws = [error_of(np.ones(5), np.ones(5))] * 2
    assert spread(0.0, draws, CHANCE) == (0, 0, 0)


def test_draws_that_are_not_finite_leave_everything_open():
    draws = [error_of(x, 0.0) for x in (1e-7, float("nan"))]
    assert spread(1e-7, draws, CHANCE).limit == float("inf")


def test_an_error_in_one_column_of_a_wide_matrix_has_many_parts():
    rng = np.random.default_rng(0)
    draws = np.zeros((4, 2048, 1024))
    draws[:, :, 5] = rng.standard_normal((4, 2048))
    found = spread(0.0, [error_of(draw, 0 * draw) for draw in draws], 1e-7)
    assert found.limit < 1.5 * found.scale
