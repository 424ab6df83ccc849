"""Mutation test of parity: planted bugs are caught at the right place, correct models pass."""

from pathlib import Path

import jax
import pytest
from mutants import MUTATIONS
from mutants.page import read
from mutants.trial import FAMILIES, TRAINED, build, compare_honest, run, trials
from tiers import examples

PAGE = Path(__file__).parents[3] / "docs" / "mutations.md"
# Families in which the forward pass alone must find bugs in weights and config again; it is slow.
TWICE = ("llama/llama3", "gpt2")
# Families in which every bug is tried. The other families get a third of the bugs each.
WHOLE = ("gpt2", "llama/llama3", "llama4_text", "gemma2", "mixtral")


def is_tried(trial) -> bool:
    """Whether the test runs a trial; benchmarks/mutations.py runs all of them."""
    place = MUTATIONS.index(trial.mutation)
    if trial.is_compiled:  # each bug in one family, in turn
        return trial.family == TRAINED[place % len(TRAINED)]
    if trial.family not in WHOLE and (FAMILIES.index(trial.family) + place) % 3:
        return False
    return trial.is_first or trial.family in TWICE


@pytest.fixture(scope="module", params=examples(FAMILIES, "smollm3"))
def pair(request, tmp_path_factory):
    yield request.param, build(request.param, tmp_path_factory.mktemp("mutants"))
    jax.clear_caches()  # thousands of small programs that other families do not need


@pytest.mark.cases(1, exhaustive=2)
def test_every_bug_is_caught_at_its_place(pair):
    family, models = pair
    wrong = {}
    for trial in trials(family, models.model):
        if is_tried(trial) and not (outcome := run(trial, models)).is_right:
            wrong[str(trial)] = outcome
    assert not wrong, "\n".join(f"{trial}: {outcome}" for trial, outcome in wrong.items())


def test_the_page_lists_every_trial(pair):
    family, models = pair
    rows = {str(trial) for trial in trials(family, models.model)}
    assert rows == {row for row in read(PAGE) if f", {family}, " in row}


@pytest.mark.cases(1, exhaustive=2)
def test_correct_models_raise_no_false_alarm(pair, tmp_path):
    family, _ = pair
    for seed in range(1 + FAMILIES.index(family), 21, len(FAMILIES)):  # 20 seeds over all families
        first = compare_honest(build(family, tmp_path / str(seed), seed))
        assert first is None, first


def test_the_page_has_no_missed_bug_and_no_false_alarm():
    text = PAGE.read_text()
    assert all(cells["right"] == "yes" for cells in read(PAGE).values())
    assert ". 0 false alarms over" in text
