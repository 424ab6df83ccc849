"""Processes that work together must have the same facts; every difference is named."""

import json

import pytest

from jaxllm.distributed import agreement
from jaxllm.distributed.agreement import MOST_LINES, check_agreement, versions
from jaxllm.errors import UserError

CONFIG = {"seed": 0, "data": {"text": ["a.txt"]}}


def among(monkeypatch, *others: dict) -> None:
    """Makes this process the first of several."""
    texts = [json.dumps({**facts, "versions": versions() | facts["versions"]}) for facts in others]
    monkeypatch.setattr(agreement, "gather_texts", lambda own: [own, *texts])


def test_processes_that_agree_may_go_on(monkeypatch):
    check_agreement({"config": CONFIG})
    among(monkeypatch, {"config": CONFIG, "versions": {}})
    check_agreement({"config": CONFIG})


def test_every_difference_is_named(monkeypatch):
    other = {"seed": 1, "data": {"text": ["b.txt"]}}
    among(
        monkeypatch,
        {"config": CONFIG, "versions": {}},
        {"config": other, "versions": {"jax": "0.0.1"}},
    )
    with pytest.raises(UserError, match="the 3 processes of this run differ") as error:
        check_agreement({"config": CONFIG})
    assert set(str(error.value).splitlines()[1:]) == {
        "config.seed: 0 in process 0, 1 in process 2",
        "config.data.text: ['a.txt'] in process 0, ['b.txt'] in process 2",
        f"versions.jax: {versions()['jax']!r} in process 0, '0.0.1' in process 2",
    }


def test_many_differences_are_counted(monkeypatch):
    names = [str(number) for number in range(MOST_LINES + 5)]
    among(monkeypatch, {"config": dict.fromkeys(names, 1), "versions": {}})
    with pytest.raises(UserError, match=r"and 5 more$"):
        check_agreement({"config": dict.fromkeys(names, 0)})
