"""Rows: errors, thresholds and verdicts."""

import dataclasses
import math

import pytest

from jaxllm.interop.parity.report.activation_rows import Error, TapResult
from jaxllm.interop.parity.report.rows import (
    FieldResult,
    LossResult,
    ScoresResult,
    TensorResult,
    TextResult,
    WeightResult,
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
        (ScoresResult("generate.logits", Error(2e-6, 1e-7, 1e-6)), 2e-6),
        (ScoresResult("generate.filtered", Error(0.0, 1e-7, 1e-6), unexplained=1), math.inf),
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


def test_texts_after_a_tie_cannot_tell_unless_the_reference_judged_them():
    tie = TextResult("generate.beams", 4, (1, 2), (1, 5), is_tie=True)
    assert tie.verdict == "cannot tell"
    assert dataclasses.replace(tie, is_confirmed=True).verdict == "equal within rounding"
    assert TextResult("generate.greedy", 4, (1, 2), (1, 2)).verdict == "equal within rounding"


def test_nan_fails():
    assert not tap("mlp", NAN).ok
    assert not tap("mlp", 0.0, NAN).ok
    assert not TensorResult("mlp", "kernel", "gradient", NAN, 1e-7, 1e-6).ok
