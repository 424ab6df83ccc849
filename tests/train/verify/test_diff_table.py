"""Terminal tables of the differences between two runs."""

import dataclasses
import io

import pytest
from rich.console import Console

from jaxllm.train.verify.diff import ArrayDifference, Diff, FieldDifference, MetricDifference
from jaxllm.train.verify.diff_table import WORST, headline, render

DIFF = Diff(
    a="runs/baseline",
    b="runs/bfloat16_moments",
    config=(
        FieldDifference("optimizer.learning_rate", 3e-4, 1e-3, is_free=False),
        FieldDifference("output", "runs/baseline", "runs/bfloat16_moments", is_free=True),
    ),
    data=(),
    last_steps=(200, 180),
    metrics=(MetricDifference("gradient_norm", 11, 5.304463863, 5.304463386, 9e-8, 190, 3.1e-3),),
    checkpoints=(100,),
    arrays=tuple(
        ArrayDifference("parameter", f"layers.{i}.attn.q_proj.kernel", 1e-3) for i in range(12)
    ),
)

SAME = Diff("runs/a", "runs/b", (), (), (6, 9), (), (3, 6), ())
LOSS = MetricDifference("loss", 4, 1.0, 1.5, 0.5, 3, 0.75)
ARRAYS = tuple(
    ArrayDifference("parameter", f"layers.{i}.scale", 1.0 / (i + 1)) for i in range(WORST + 2)
)


def text_of(diff, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(diff))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80])
def test_all_differences_fit_in_narrow_terminals(width):
    text = text_of(DIFF, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for words in (
        *("A is runs/baseline", "B is runs/bfloat16_moments", "gradient_norm", "0.0003"),
        *("A 5.30446386", "B 5.30446339", "9.0e-08", "3.1e-03", "190 steps", "none on any"),
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
        arrays_alone, arrays=(), data=(FieldDifference("text.md5", "1", "2", is_free=False),)
    )
    assert headline(other_data) == "The runs use different data: text.md5."


def test_the_headline_of_identical_runs_says_how_far_they_were_compared():
    assert headline(SAME) == "The runs are the same up to step 6; checkpoints compared: 3, 6."
    unsaved = dataclasses.replace(SAME, checkpoints=())
    assert headline(unsaved).endswith("checkpoints compared: none.")
    assert text_of(SAME).strip() == headline(SAME)


def test_each_kind_of_difference_has_a_table():
    fields = (FieldDifference("seed", 0, 1, False), FieldDifference("keep", 2, 9, True))
    text = text_of(
        dataclasses.replace(SAME, config=fields, metrics=(LOSS,), checkpoints=(3,), arrays=ARRAYS),
        width=140,
    )
    [free] = [line for line in text.splitlines() if "none on any number" in line]
    assert free.split()[:3] == ["keep", "2", "9"]
    lines = text.splitlines()
    [at] = [at for at, line in enumerate(lines) if line.strip().startswith("loss")]
    assert lines[at].split() == ["loss", "from", "4", "A", "1", "5.0e-01"]
    assert lines[at + 1].split() == ["3", "steps", "B", "1.5", "7.5e-01"]
    assert f"Step 3: {len(ARRAYS)} arrays differ" in text
    assert f"layers.{WORST - 1}.scale" in text
    assert f"layers.{WORST}.scale" not in text
