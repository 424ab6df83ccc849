"""Rows of activations: two errors, of which one decides."""

import math

import pytest

from jaxllm.interop.parity.report.activation_rows import Error, TapResult, first_wrong


def tap(path, cumulative, forced=None):
    own = None if forced is None else Error(forced, 1e-7, 1e-6)
    return TapResult(path, Error(cumulative, 3e-7, 1.2e-6), 0.0, own)


def test_what_is_outside_of_the_shared_direction_decides():
    error = Error(5e-5, 1e-7, 1e-6, outside=2e-7, whole_threshold=1e-3)
    assert (error.measured, error.ok, error.ratio) == (2e-7, True, pytest.approx(0.2))
    assert not Error(5e-5, 1e-7, 1e-6).ok
    assert TapResult("mlp", error, 0.0).threshold_along_direction == 1e-3
    assert TapResult("mlp", Error(5e-7, 1e-7, 1e-6), 0.0).threshold_along_direction == 0


def test_exact_results_have_no_threshold():
    assert (Error(0.0, 0.0, 0.0).ratio, Error(1e-9, 0.0, 0.0).ratio) == (0.0, math.inf)


def test_either_threshold_may_be_too_high_to_tell():
    clear, hidden = Error(1e-7, 1e-7, 1e-6), Error(1e-7, 1e-3, 1e-2)
    assert TapResult("mlp", clear, 0.0, clear).verdict == "equal within rounding"
    assert TapResult("mlp", hidden, 0.0, clear).verdict == "cannot tell"
    assert TapResult("mlp", clear, 0.0, hidden).verdict == "cannot tell"
    assert TapResult("mlp", hidden, 0.0, clear).highest_threshold == 1e-2
    assert TapResult("mlp", hidden, 0.0, Error(1.0, 1e-7, 1e-6)).verdict == "differs"


def test_the_decisive_error_is_the_own_one_if_it_fails_else_the_closest_to_failing():
    assert tap("mlp", 6e-7, 9e-7).decisive.relative_l2 == 9e-7
    assert tap("mlp", 1.1e-6, 5e-7).decisive.relative_l2 == 1.1e-6
    assert tap("mlp", 1.0, 2e-6).decisive.relative_l2 == 2e-6, "its own error comes first"


def test_the_first_wrong_activation_is_the_first_that_fails_on_its_own():
    right, late, own = tap("a", 0.0, 0.0), tap("b", 1.0, 1e-7), tap("c", 1.0, 1.0)
    assert first_wrong([right, late, own]) is own
    assert first_wrong([right, late]) is late
    assert first_wrong([right]) is None
