"""The gate's own test: every bug of every family is caught and named, and no honest model is."""

from pathlib import Path

import jax
import pytest
from mutants import MUTATIONS
from mutants.page import read
from mutants.trial import FAMILIES, TRAINED, build, compare_honest, run, trials

PAGE = Path(__file__).parents[3] / "docs" / "mutations.md"
# Bugs in the weights and the config are found again by the forward pass alone here; it costs more.
TWICE = ("llama/llama3", "gpt2")
# Every bug is tried in these, and others in one of three of them.
WHOLE = ("gpt2", "llama/llama3", "llama4_text", "gemma2", "mixtral")


def is_tried(trial) -> bool:
    """Whether a trial is one of those that a test has time for; the benchmark runs all."""
    place = MUTATIONS.index(trial.mutation)
    if trial.is_compiled:  # each bug in one of the families that take turns
        return trial.family == TRAINED[place % len(TRAINED)]
    if trial.family not in WHOLE and (FAMILIES.index(trial.family) + place) % 3:
        return False
    return trial.is_first or trial.family in TWICE


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    yield request.param, build(request.param, tmp_path_factory.mktemp("mutants"))
    jax.clear_caches()  # of thousands of small programs, which other families do not need


def test_every_bug_is_caught_where_it_is(pair):
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


def test_honest_models_raise_no_alarm(pair, tmp_path):
    family, _ = pair
    for seed in range(1 + FAMILIES.index(family), 21, len(FAMILIES)):  # 20 among all families
        first = compare_honest(build(family, tmp_path / str(seed), seed))
        assert first is None, first


def test_the_page_says_that_the_gate_holds():
    text = PAGE.read_text()
    assert all(cells["right"] == "yes" for cells in read(PAGE).values())
    assert ". 0 false alarms over" in text
