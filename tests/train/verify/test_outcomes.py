"""Results of a layout comparison: thresholds, the worst difference, the summary and the table."""

import io
import json
import math

from rich.console import Console

from jaxllm.train.checkpoint_arrays import FIRST_MOMENT
from jaxllm.train.verify.outcomes import Difference, Equality, Outcome

FIGURES = (1e-7, 9.5e-7, 9.5e-7)  # floor, threshold and highest threshold
FINE = Difference("loss", "", 1e-8, *FIGURES)
CLOSE = Difference(FIRST_MOMENT, "embed.embedding", 0.5 * FINE.threshold, *FIGURES)
WRONG = Difference(FIRST_MOMENT, "final_norm.scale", 10 * FINE.threshold, *FIGURES)
WORSE = Difference("update", "final_norm.scale", 1000 * FINE.threshold, *FIGURES)
UP_PROJ = "layers.7.mlp.experts.up_proj.kernel"
LONG = Outcome("fsdp=4 x tensor=2", (Difference(FIRST_MOMENT, UP_PROJ, 3e-7, *FIGURES),))
LONG_WRONG = Outcome(
    "gradient accumulation of 4",
    (Difference("loss", "", 0.03, *FIGURES), Difference(FIRST_MOMENT, UP_PROJ, 0.02, *FIGURES)),
)


def test_a_difference_passes_up_to_its_threshold():
    assert FINE.ok
    assert not WRONG.ok
    assert WRONG.ratio > 1 > CLOSE.ratio > FINE.ratio
    at_it = Difference("loss", "", FINE.threshold, *FIGURES)
    assert at_it.ok
    assert math.isclose(at_it.ratio, 1)


def test_nan_fails_with_an_infinite_ratio():
    nan = Difference("loss", "", math.nan, *FIGURES)
    assert not nan.ok
    assert nan.ratio == math.inf
    assert nan.to_json()["measured"] is None


def test_a_wrong_gradient_is_reported_as_the_worst():
    """A wrong gradient explains a wrong update, so it is the better report."""
    assert Outcome("a", (FINE, CLOSE)).worst is CLOSE
    assert Outcome("a", (FINE, WORSE, WRONG)).worst is WRONG
    assert Outcome("a", (FINE, WORSE, CLOSE)).worst is WORSE


def test_the_verdict_names_the_first_failing_variant():
    fine, wrong, worse = (
        Outcome(name, (FINE, found))
        for name, found in (("one", CLOSE), ("two", WRONG), ("three", WORSE))
    )
    assert Equality((fine,)).first is None
    assert Equality((fine,)).summary == "All 1 variants match the single-device step."
    found = Equality((fine, wrong, worse))
    assert found.first is wrong
    assert found.summary.startswith(
        "2 of 3 variants differ from the single-device step. The first is two:"
    )
    assert "first moment of final_norm.scale" in found.summary
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [variant["ok"] for variant in data["variants"]] == [True, False, False]


def test_what_the_comparison_cannot_tell_is_said():
    wide = Difference("update", "embed.embedding", 1e-8, 1e-4, 5e-4, 0.02)
    assert wide.ok
    assert not wide.is_decided
    assert WRONG.is_decided
    assert Equality((Outcome("a", (FINE, wide)),)).summary == (
        "All 1 variants match the single-device step. 1 of 2 comparisons cannot tell a mistake "
        "from rounding: the threshold of the update of embed.embedding is 2.0e-02."
    )


def test_the_table_marks_failures():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(Equality((Outcome("one", (CLOSE,)), Outcome("two", (WRONG,)))).table())
    lines = capture.get().splitlines()
    [one] = [line for line in lines if "✓ one" in line]
    [two] = [line for line in lines if "✗ two" in line]
    assert "embed.embedding" in one
    assert "final_norm.scale" in two


def test_the_table_shows_whole_names_in_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Equality((LONG, LONG_WRONG)).table())
    text = console.export_text()
    assert "…" not in text
    for words in ("✓ fsdp=4", "✗ gradient", "3.0e-07", "2.0e-02", "9.5e-07"):
        assert words in text
