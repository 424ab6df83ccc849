"""Curves: values by step, and their smoothing."""

import math

import numpy as np
import pytest

from jaxllm.train.monitoring.curves import SMOOTHING, Curve, curve, smoothed


def test_a_curve_has_the_steps_of_its_metric_without_what_is_not_finite():
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "other": 1.0}, {"step": 3, "loss": math.nan}]
    records += [{"step": 4, "loss": -1e308}, {"step": 10**300, "loss": 1.0}]
    found = curve(records, "loss")
    assert (found.steps.tolist(), found.values.tolist()) == ([1], [2])
    assert curve(records, "nothing").steps.size == 0


def test_smoothing_is_the_weighted_mean_by_distance():
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 9, 40)).astype(float)
    values = rng.standard_normal(40)
    width = SMOOTHING * (steps[-1] - steps[0])
    for index, found in enumerate(smoothed(Curve(steps, values)).values):
        weights = np.exp((steps[: index + 1] - steps[index]) / width)
        assert found == pytest.approx(np.average(values[: index + 1], weights=weights))


def test_a_constant_stays_and_two_points_are_not_smoothed():
    flat = Curve(np.arange(9.0), np.full(9, 3.0))
    assert smoothed(flat).values == pytest.approx(flat.values)
    two = Curve(np.arange(2.0), np.array([1.0, 5.0]))
    assert smoothed(two) == two
