"""Damaged files of every format are read or refused: no traceback, no hang, no crash."""

import random

import pytest
from hostile.mutations import mutate
from hostile.targets import TARGETS
from hostile.trial import run_trials

# `python benchmarks/fuzz.py` tries 2,000.
COUNT = 200

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_mutations_are_many_and_reproducible():
    data = b'{"a": [1, 2], "b": {"c": "text"}}\n'
    seen = {mutate(data, random.Random(seed)) for seed in range(200)}
    assert seen == {mutate(data, random.Random(seed)) for seed in range(200)}
    assert len(seen - {data}) > 100


@pytest.mark.parametrize(
    "count", [len(TARGETS) // 3, pytest.param(COUNT, marks=pytest.mark.exhaustive)]
)
def test_damaged_files_are_read_or_refused(count):
    outcomes = list(run_trials(count))
    assert len(outcomes) == count
    assert [outcome for outcome in outcomes if outcome.problem] == []
