"""The sentences of a report, and the format of its numbers."""

import dataclasses

import pytest
from parity_reports import NAN, make_report, tap, with_rows

from jaxllm.interop.parity.render.sentences import (
    compared,
    describe_failure,
    explanation,
    hint,
    name,
    number,
    worst_row,
)
from jaxllm.interop.parity.report.rows import (
    FieldResult,
    LossResult,
    TensorResult,
    TextResult,
    WeightResult,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (1.0, "1.0"), (0.027, "0.027"), (3.14e-7, "3.1e-07"), (1234.0, "1.2e+03")),
        *((NAN, "nan"), (float("inf"), "inf")),
    ],
)
def test_numbers_have_two_significant_digits(value, text):
    assert number(value) == text


def test_the_tightest_row_is_the_first_failure_or_the_closest_to_failing():
    rows = [tap(f"layers.{i}", error) for i, error in enumerate((1e-7, 4e-7, 2e-7))]
    assert worst_row(rows) is rows[1]
    wrong = [*rows, tap("layers.3", 0.1), tap("layers.4", 0.2)]
    assert worst_row(wrong) is wrong[3]


def test_the_explanation_names_the_first_divergence():
    expected = "layers.0.mlp is the first activation that is wrong"
    assert explanation(make_report(0.27)).startswith(expected)
    assert explanation(make_report()) == (
        "Every error is within its threshold. The closest to failing is lm_head: error 4.0e-07, "
        "threshold 1.2e-06."
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            FieldResult("config.norm_eps", "", "1e-06"),
            "config.norm_eps is unknown in the model, 1e-06 in the reference",
        ),
        (
            WeightResult("embed", "embedding", ("wte",), 6400, 1500, "transposed"),
            "embed.embedding differs in 1,500 of 6,400 bits: transposed",
        ),
        (
            TextResult("generate.greedy", 5, (1, 2, 3), (1, 4, 5)),
            "generate.greedy differs from the reference in 2 of 3 tokens, after a prompt of 5 "
            "tokens",
        ),
        (
            TensorResult("embed", "embedding", "update", 0.5, 1e-7, 1e-6),
            "the update of embed.embedding is the first to differ by more than rounding: error "
            "0.50, threshold 1.0e-06",
        ),
        (
            LossResult("step 3", 3.0, 2.0, 2.0, 1e-7, 1e-6),
            "step 3 is the first to differ by more than rounding: error 0.50, threshold 1.0e-06",
        ),
    ],
)
def test_every_kind_of_row_has_its_complaint(row, sentence):
    assert f"{name(row)} {describe_failure(row)}" == sentence


def test_the_hint_is_the_first_wrong_activations():
    report = make_report(0.27)
    assert hint(report) == ""
    taps = [
        dataclasses.replace(t, hint=None if t.ok else "gate and up swapped")
        for t in report.rows["layers"]
    ]
    assert hint(with_rows(report, layers=tuple(taps))) == "gate and up swapped."


def test_every_level_counts_the_rows_that_cannot_tell():
    logits = dataclasses.replace(tap("lm_head", 1e-7), is_output=True)
    error = dataclasses.replace(logits.cumulative, threshold=1.0)
    report = with_rows(make_report(), logits=(dataclasses.replace(logits, cumulative=error),))
    assert compared("logits", report) == "64 tokens, 1 cannot tell"
    assert compared("logits", make_report()) == "64 tokens"
