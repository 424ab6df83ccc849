"""Verdicts: passed, failed, or a threshold too high to tell."""

import math

import pytest

from jaxllm.interop.parity.report.rows import FieldResult, LossResult, TensorResult


def test_equal_is_the_only_pass_of_exact_rows():
    assert FieldResult("config.size", "1", "1").verdict == "equal within rounding"
    other = FieldResult("config.size", "1", "2")
    assert (other.verdict, other.threshold, other.ratio) == ("differs", 0.0, math.inf)


def test_a_threshold_too_high_to_be_useful_is_no_pass():
    low, high, far = (
        TensorResult("mlp", "kernel", "gradient", error, 1e-7, threshold)
        for error, threshold in ((1e-7, 9e-4), (1e-7, 2e-3), (3e-3, 2e-3))
    )
    assert [row.verdict for row in (low, high, far)] == [
        *("equal within rounding", "cannot tell", "differs")
    ]
    assert [row.ok for row in (low, high, far)] == [True, True, False]
    assert high.to_json()["verdict"] == "cannot tell"
    assert LossResult("step 3", 2.0, 2.0, 2.0, 1e-5, 2e-4).verdict == "cannot tell"


def test_the_ratio_is_of_the_error_to_its_threshold():
    assert TensorResult("a", "b", "gradient", 3e-6, 1e-7, 2e-6).ratio == pytest.approx(1.5)
    assert TensorResult("a", "b", "gradient", 0.0, 0.0, 0.0).ratio == 0


def test_an_infinite_error_fails_whatever_the_threshold():
    assert TensorResult("a", "b", "update", 1.0, 0.0, math.inf).verdict == "cannot tell"
    assert TensorResult("a", "b", "update", math.inf, 0.0, math.inf).verdict == "differs"
