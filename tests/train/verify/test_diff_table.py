"""What differs between two runs, in a sentence and in tables."""

import dataclasses

from rich.console import Console

from jaxllm.train.verify.diff import Array, Diff, Field, Metric
from jaxllm.train.verify.diff_table import WORST, headline, render

SAME = Diff("runs/a", "runs/b", (), (), (6, 9), (), (3, 6), ())
LOSS = Metric("loss", 4, 1.0, 1.5, 0.5, 3, 0.75)
NORM = Metric("grad_norm", 5, 2.0, 2.5, 0.25, 2, 0.25)
ARRAYS = tuple(Array("parameter", f"layers.{i}.scale", 1.0 / (i + 1)) for i in range(WORST + 2))


def shown(diff: Diff) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(render(diff))
    return capture.get()


def test_runs_that_are_the_same_say_how_far_they_were_compared():
    assert headline(SAME) == "The runs are the same up to step 6; checkpoints compared: 3, 6."
    unsaved = dataclasses.replace(SAME, checkpoints=())
    assert headline(unsaved).endswith("checkpoints compared: none.")
    assert shown(SAME).strip() == headline(SAME)


def test_the_headline_names_what_differs_first():
    logged = dataclasses.replace(SAME, metrics=(LOSS, NORM))
    assert headline(logged) == "The runs part at step 4: loss."
    saved = dataclasses.replace(logged, checkpoints=(3,), arrays=ARRAYS)
    assert headline(saved) == "The runs part by step 3: the parameter of layers.0.scale the most."
    other = dataclasses.replace(SAME, data=(Field("train_tokens", "ab", "cd", False),))
    assert headline(other) == "The runs see other data: train_tokens."


def test_each_kind_of_difference_has_a_table():
    fields = (Field("seed", 0, 1, False), Field("keep", 2, 9, True))
    text = shown(
        dataclasses.replace(SAME, config=fields, metrics=(LOSS,), checkpoints=(3,), arrays=ARRAYS)
    )
    [free] = [line for line in text.splitlines() if "changes no number" in line]
    assert free.split()[:3] == ["keep", "2", "9"]
    [loss] = [line for line in text.splitlines() if line.strip().startswith("loss")]
    assert loss.split() == ["loss", "4", "1.0", "1.5", "5.0e-01", "3", "7.5e-01"]
    assert f"step 3: {len(ARRAYS)} arrays differ" in text
    assert f"layers.{WORST - 1}.scale" in text
    assert f"layers.{WORST}.scale" not in text
