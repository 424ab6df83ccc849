"""Verdicts: passed, failed, or a threshold too high to tell."""

import math

import pytest

from jaxllm.interop.parity.report.activation_rows import Error, TapResult
from jaxllm.interop.parity.report.judged import settled
from jaxllm.interop.parity.report.rows import FieldResult, LossResult, ScoresResult, TensorResult


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


def test_a_suspect_row_cannot_tell_unless_another_certainly_differs():
    equal, suspect, wrong = (
        TensorResult("mlp", "kernel", "gradient", error, 1e-7, 2e-7, is_suspect=is_suspect)
        for error, is_suspect in ((1e-7, False), (4e-7, True), (1.0, False))
    )
    assert [row.verdict for row in settled([equal, suspect])] == [
        *("equal within rounding", "cannot tell")
    ]
    assert suspect.to_json()["reason"].startswith("the error is 2 times the threshold")
    assert [row.verdict for row in settled([equal, suspect, wrong])] == [
        *("equal within rounding", "differs", "differs")
    ]
    error = Error(4e-7, 1e-7, 2e-7, is_suspect=True)
    for row in (TapResult("mlp", error, 0.0), ScoresResult("generate.logits", error)):
        assert (row.verdict, row.convicted().verdict) == ("cannot tell", "differs")
    assert ScoresResult("generate.filtered", error, unexplained=1).verdict == "differs"


def test_an_update_of_which_next_to_nothing_is_compared_cannot_tell():
    few, many = (
        TensorResult("mlp", "kernel", "update", 1e-7, 1e-7, 1e-6, compared=share)
        for share in (0.001, 0.5)
    )
    assert (few.verdict, many.verdict) == ("cannot tell", "equal within rounding")
    assert few.reason == "only 0.1% of the elements are compared: the others are noise"


def test_the_ratio_is_of_the_error_to_its_threshold():
    assert TensorResult("a", "b", "gradient", 3e-6, 1e-7, 2e-6).ratio == pytest.approx(1.5)
    assert TensorResult("a", "b", "gradient", 0.0, 0.0, 0.0).ratio == 0


def test_an_infinite_error_fails_whatever_the_threshold():
    assert TensorResult("a", "b", "update", 1.0, 0.0, math.inf).verdict == "cannot tell"
    assert TensorResult("a", "b", "update", math.inf, 0.0, math.inf).verdict == "differs"
