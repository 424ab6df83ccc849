"""The notes of a report: what cannot be told, what was left out, and why."""

import dataclasses

from parity_reports import make_report, with_rows

from jaxllm.interop.parity.render import html
from jaxllm.interop.parity.render.notes import (
    flips_note,
    later_note,
    left_out_note,
    notes,
    texts_note,
    unclear_note,
    unjudged_note,
)
from jaxllm.interop.parity.render.sentences import (
    compared,
    explanation,
    headline,
)
from jaxllm.interop.parity.report.activation_rows import RouterFlips
from jaxllm.interop.parity.report.rows import (
    TensorResult,
    TextResult,
)


def test_rows_that_cannot_be_judged_are_counted_and_the_worst_is_named():
    assert unclear_note(make_report()) == ""
    rows = tuple(
        TensorResult(f"layers.{i}", "kernel", "gradient", 1e-4, 1e-3, threshold)
        for i, threshold in enumerate((1e-4, 5e-3, 2e-3))
    )
    report = with_rows(make_report(), gradients=rows)
    assert unclear_note(report) == (
        "In 2 rows rounding alone may cause an error of more than 1.0e-03, so that smaller "
        "mistakes cannot be seen there. The highest threshold is 5.0e-03, of the gradient of "
        "layers.1.kernel."
    )
    assert compared("gradients", report) == "3 gradients, 0 differ, 2 cannot tell"
    assert headline(report) == "Parity holds; 2 rows cannot tell"
    assert headline(make_report()) == "Parity holds"
    assert headline(with_rows(make_report(0.27), gradients=rows)) == "Parity is broken"


def test_suspect_rows_and_rows_of_noise_are_said_to_be_undecided():
    suspect = TensorResult("mlp", "kernel", "m", 4e-6, 1e-6, 2e-6, is_suspect=True)
    few = TensorResult("mlp", "bias", "update", 1e-7, 1e-7, 1e-6, compared=0.001)
    report = with_rows(make_report(), step=(suspect, few))
    assert unclear_note(report) == (
        "1 row is beyond the threshold, of which few draws of rounding errors cannot be certain: "
        "the worst is the m of mlp.kernel, 2.0 times its threshold. `jaxllm parity`, where PyTorch "
        "is installed, takes more draws and decides. In 1 row less than 1% of the elements could "
        "be compared: the others are noise."
    )
    assert explanation(report) == (
        "No error is certainly beyond its threshold. The closest to failing is the m of "
        "mlp.kernel: error 4.0e-06, threshold 2.0e-06."
    )
    assert headline(report) == "Parity holds; 2 rows cannot tell"
    page = html.render(report)
    assert "What cannot be told" in page
    assert "only 0.1% of the elements are compared" in page
    assert "What cannot be told" not in html.render(make_report())


def test_a_level_without_rows_is_named():
    report = with_rows(make_report(), layers=())
    assert notes(report) == ["Nothing could be compared at: layers."]
    assert compared("layers", report) == "not compared"


def test_mistakes_along_a_shared_direction_are_said_to_be_invisible():
    row = TensorResult("mlp", "kernel", "gradient", 2e-3, 1e-6, 1e-5)
    row = dataclasses.replace(row, outside=1e-6, whole_threshold=4e-3)
    assert row.verdict == "equal within rounding"
    assert unclear_note(with_rows(make_report(), gradients=(row,))) == (
        "In 1 row, rounding errors share a direction; along it, a mistake of up to 4.0e-03 cannot "
        "be seen."
    )


def test_levels_that_could_not_be_compared_are_named():
    report = dataclasses.replace(make_report(), unjudged=("layers", "logits"))
    assert "layers, logits" in unjudged_note(report)
    assert compared("layers", report) == "not compared"
    assert unjudged_note(make_report()) == ""


def test_routers_that_select_other_experts_are_named():
    flips = (
        RouterFlips("layers.0.mlp.router", 0, 0.0, 3),
        RouterFlips("layers.1.mlp.router", 7, 3e-7, 0),
    )
    note = flips_note(dataclasses.replace(make_report(), flips=flips))
    assert "layers.1.mlp.router is the first router" in note
    assert "7 of 64 tokens" in note
    assert "layers.0.mlp.router for 3 tokens" in note
    assert flips_note(make_report()) == ""


def test_texts_that_diverge_at_a_tie_are_told():
    tie = TextResult("generate.beams", 4, (1, 2), (1, 5), is_tie=True)
    report = with_rows(make_report(), generate=(tie,))
    assert "In 1 row the generated texts diverge" in texts_note(report)
    assert texts_note(report) in notes(report)
    assert "rounding alone may cause" not in " ".join(notes(report))
    assert headline(report) == "Parity holds; 1 row cannot tell"
    assert texts_note(make_report()) == ""


def test_later_batches_and_what_is_left_out_are_told():
    left_out = ("layers.0.attn.q", "layers.1.attn.q", "call 2: block")
    report = dataclasses.replace(make_report(), later_batches="random tokens", left_out=left_out)
    assert "layers.{0..1}.attn.q, call 2: block." in left_out_note(report)
    assert later_note(report) == "Training steps after the first are on random tokens."
    assert {left_out_note(report), later_note(report)} <= set(notes(report))
    assert (left_out_note(make_report()), later_note(make_report())) == ("", "")
