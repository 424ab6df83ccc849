"""Differences between two runs, in a terminal."""

import dataclasses
import io

from rich.console import Console

from jaxllm.train.verify.diff import Array, Diff, Field, Metric
from jaxllm.train.verify.diff_table import WORST, headline, render

DIFF = Diff(
    a="runs/baseline",
    b="runs/bfloat16_moments",
    config=(
        Field("optimizer.learning_rate", 3e-4, 1e-3, is_free=False),
        Field("output", "runs/baseline", "runs/bfloat16_moments", is_free=True),
    ),
    data=(),
    last_steps=(200, 180),
    metrics=(Metric("gradient_norm", 11, 5.304463863, 5.304463386, 9e-8, 190, 3.1e-3),),
    checkpoints=(100,),
    arrays=tuple(Array("parameter", f"layers.{i}.attn.q_proj.kernel", 1e-3) for i in range(12)),
)


def text_of(diff):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(diff))
    return console.export_text()


def test_everything_that_differs_is_shown_in_80_columns():
    text = text_of(DIFF)
    assert "…" not in text
    for words in (
        *("A is runs/baseline", "B is runs/bfloat16_moments", "gradient_norm", "0.0003"),
        *("A 5.30446386", "B 5.30446339", "9.0e-08", "3.1e-03", "190", "none on any number"),
    ):
        assert words in text


def test_the_worst_arrays_are_listed_and_all_are_counted():
    text = text_of(DIFF)
    assert "12 arrays differ" in text
    assert text.count("q_proj.kernel") == WORST


def test_the_headline_says_where_the_runs_diverge():
    assert headline(DIFF) == "The runs diverge at step 11: gradient_norm."
    arrays_alone = dataclasses.replace(DIFF, metrics=())
    assert headline(arrays_alone) == (
        "The runs have diverged by step 100, most in layers.0.attn.q_proj.kernel (parameter)."
    )
    other_data = dataclasses.replace(
        arrays_alone, arrays=(), data=(Field("text.md5", "1", "2", is_free=False),)
    )
    assert headline(other_data) == "The runs use different data: text.md5."
