"""Distances equal values computed by hand."""

import math

import numpy as np
import pytest

from jaxllm.numerics.distance import BLOCK, max_abs, relative, relative_l2


def test_a_relative_distance_is_that_of_all_elements():
    reference = np.array([3.0, 4.0], np.float32)
    assert relative_l2(reference + np.array([0.0, 0.5]), reference) == pytest.approx(0.1)
    assert relative_l2(2.5, 2.0) == pytest.approx(0.25)  # numbers
    assert math.isnan(relative_l2(math.nan, 2.0))


def test_relative_error_to_zero_is_zero_only_without_distance():
    assert relative(0.0, 0.0) == 0
    assert relative(1e-30, 0.0) == math.inf
    assert math.isnan(relative(math.nan, 1.0))


def test_the_largest_difference_is_that_of_one_element():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    assert max_abs(a, b) == pytest.approx(float(np.abs(a - b).max()))
    large = np.zeros((2, BLOCK), np.float32)
    large[1, -1] = -2.0
    assert max_abs(large, np.zeros_like(large)) == 2.0
    large[0, 0] = math.nan
    assert math.isnan(max_abs(large, np.zeros_like(large)))
