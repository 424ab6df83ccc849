"""Deviations and noise floors equal values computed by hand."""

import math

import numpy as np
import pytest

from jaxllm.deviation import (
    MAX_TRAINING_THRESHOLD,
    MIN_THRESHOLD,
    bounded_threshold,
    deviation,
    exceeds_noise,
    gradient_deviation,
    joint_norm,
    max_abs,
    norm,
    relative,
    training_threshold,
    update_deviation,
)

REFERENCE = np.array([3.0, 4.0], np.float32)  # norm 5


def moved(x: float, y: float) -> np.ndarray:
    return REFERENCE + np.array([x, y])


def test_noise_floor_is_the_largest_error_of_the_other_evaluations():
    others = [moved(0.05, 0.0), moved(0.0, -0.1)]
    found = deviation(moved(0.0, 0.5), REFERENCE, others)
    assert found.error == pytest.approx(0.1)
    assert found.floor == pytest.approx(0.02)
    assert found.relative_to == "own"
    assert deviation(2.5, 2.0, [2.1, 1.8])[:2] == pytest.approx((0.25, 0.1))  # scalars
    assert math.isnan(deviation(math.nan, 2.0, [2.1]).error)


def test_relative_error_to_zero_is_zero_only_without_distance():
    assert relative(0.0, 0.0) == 0
    assert relative(1e-30, 0.0) == math.inf
    assert math.isnan(relative(math.nan, 1.0))


@pytest.mark.parametrize(
    ("noise", "whole", "wanted"),
    [
        (0.4, 100.0, (0.2, 0.08, "own")),
        (0.6, 100.0, (0.01, 0.006, "all")),  # floor of 0.12 of its own norm: relative to "all"
        (0.6, 0.0, (0.2, 0.12, "own")),
    ],
    ids=["a gradient", "nothing but noise", "nothing at all"],
)
def test_gradient_of_pure_noise_is_relative_to_all_gradients(noise, whole, wanted):
    others = [moved(noise, 0.0), REFERENCE]
    error, floor, relative_to = gradient_deviation(moved(0.0, 1.0), REFERENCE, others, whole)
    assert (error, floor) == pytest.approx(wanted[:2])
    assert relative_to == wanted[2]


def test_update_noise_floor_includes_parameter_rounding():
    parameter = np.array([1.0, 6.0], np.float32)  # half a unit in the last place: 2**-24 and 2**-22
    update = np.array([3e-3, 4e-3], np.float32)
    rounding = 2**-24 * math.hypot(1, 4) / 5e-3
    found = update_deviation(update, update, [update], parameter)
    assert (found.error, found.floor) == (0, pytest.approx(rounding))
    found = update_deviation(update, update, [update * np.float32(1.01)], parameter)
    assert found.floor == pytest.approx(0.01, rel=1e-4)
    # A zero update has no norm to divide by: its noise floor is 0.
    assert update_deviation(0 * update, 0 * update, [0 * update], parameter).floor == 0


def test_exceeds_noise_masks_elements_above_the_noise():
    gradient = np.array([1.0, -1.0, 0.01, 0.0], np.float32)
    others = [gradient + np.float32(0.001), gradient - np.float32(0.002)]
    assert exceeds_noise(gradient, others, 4.0).tolist() == [True, True, True, False]
    assert exceeds_noise(gradient, others, 10.0).tolist() == [True, True, False, False]


def test_joint_norm_is_the_norm_of_the_concatenation():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    assert joint_norm([a, b[:2]]) == pytest.approx(norm(np.concatenate([a, b[:2]])))
    assert max_abs(a, b) == pytest.approx(float(np.abs(a - b).max()))


def test_the_training_threshold_is_four_floors_within_its_bounds():
    assert training_threshold(1e-5) == pytest.approx(4e-5)
    assert training_threshold(0.0) == MIN_THRESHOLD
    assert training_threshold(1.0) == MAX_TRAINING_THRESHOLD
    assert bounded_threshold(1.0, 1e-3) == 1e-3
    assert not training_threshold(math.nan) >= 0.0
