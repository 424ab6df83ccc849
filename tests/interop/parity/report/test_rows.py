"""Rows: errors, thresholds and verdicts."""

import math

import pytest

from jaxllm.interop.parity.report.rows import (
    Error,
    FieldResult,
    LossResult,
    ScoresResult,
    TapResult,
    TensorResult,
    TextResult,
    WeightResult,
    first_wrong,
)

NAN = float("nan")


def tap(path, cumulative, forced=None):
    own = None if forced is None else Error(forced, 1e-7, 1e-6)
    return TapResult(path, Error(cumulative, 3e-7, 1.2e-6), 0.0, own)


@pytest.mark.parametrize(
    ("row", "measured"),
    [
        (FieldResult("config.size", "1", "2"), 1),
        (WeightResult("mlp", "kernel", ("w",), 64, 3), 3),
        (TensorResult("mlp", "kernel", "gradient", 2e-6, 1e-7, 1e-6), 2e-6),
        (LossResult("step 3", 1.5, 2.0, 2.0, 1e-7, 1e-6), 0.25),
        (TextResult("generate.greedy", 4, (1, 2, 3), (1, 5, 3, 4)), 2),
        (ScoresResult("generate.logits", 2e-6, 1e-7, 1e-6), 2e-6),
        (ScoresResult("generate.filtered", 0.0, 1e-7, 1e-6, unexplained=1), math.inf),
        (tap("mlp", 2e-6), 2e-6),
        (tap("mlp", 1e-7, 3e-6), 3e-6),
    ],
)
def test_rows_beyond_their_thresholds_fail(row, measured):
    assert not row.ok
    assert row.measured == measured
    assert row.ratio > 1
    data = row.to_json()
    assert (data["path"], data["measured"], data["ok"]) == (row.path, measured, False)


@pytest.mark.parametrize(
    "row",
    [
        FieldResult("config.size", "1", "1"),
        WeightResult("mlp", "kernel", ("w",), 64, 0),
        LossResult("step 3", 2.0, 2.0, 2.0, 0.0, 1e-6),
        TextResult("generate.greedy", 4, (1, 2), (1, 5), is_tie=True),
        tap("mlp", 1.1e-6, 9e-7),
    ],
)
def test_rows_within_their_thresholds_pass(row):
    assert row.ok
    assert row.ratio <= 1


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


def test_nan_fails():
    assert not tap("mlp", NAN).ok
    assert not tap("mlp", 0.0, NAN).ok
    assert not TensorResult("mlp", "kernel", "gradient", NAN, 1e-7, 1e-6).ok


def test_the_decisive_error_is_the_own_one_if_it_fails_else_the_closest_to_failing():
    assert tap("mlp", 6e-7, 9e-7).decisive.relative_l2 == 9e-7
    assert tap("mlp", 1.1e-6, 5e-7).decisive.relative_l2 == 1.1e-6
    assert tap("mlp", 1.0, 2e-6).decisive.relative_l2 == 2e-6, "its own error comes first"


def test_the_first_wrong_activation_is_the_first_that_fails_on_its_own():
    right, late, own = tap("a", 0.0, 0.0), tap("b", 1.0, 1e-7), tap("c", 1.0, 1.0)
    assert first_wrong([right, late, own]) is own
    assert first_wrong([right, late]) is late
    assert first_wrong([right]) is None
