"""Problems of tensors are reported once each, by name and axis, with a suggestion."""

import numpy as np
import pytest

from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.loading.diagnostics import (
    check_arrays,
    check_count,
    check_tensors,
    reason_to_ignore,
)
from jaxllm.interop.rules.rule import Rule

SIZES = {"L": 3, "N": 4, "H": 8, "D": 16, "V": 50}
TABLE = RuleTable(
    (
        Rule("tok.weight : V D", "embed.embedding : V D"),
        Rule("layers.{L}.wq.weight : (N H) D", "layers.{L}.attn.q_proj.kernel : D N H"),
    ),
    SIZES,
    tied={"head.weight": "tok.weight"},
    ignored={"layers.*.mask": "a constant"},
)
RULES = TABLE.bound({"layers": {str(i): range(i, i + 1) for i in range(3)}})


def tensors(tmp_path, **changes):
    """Returns tensors that fit the table, with other shapes where given; None drops a tensor."""
    shapes = {"tok.weight": (50, 16), **{f"layers.{i}.wq.weight": (32, 16) for i in range(3)}}
    shapes |= {name.replace("__", "."): shape for name, shape in changes.items()}
    return {
        name: StoredTensor(name, np.dtype(np.float32), shape, tmp_path / "x", 0)
        for name, shape in shapes.items()
        if shape is not None
    }


@pytest.mark.parametrize(
    ("changes", "problems", "unexpected"),
    [
        ({}, [], []),
        ({"head__weight": (50, 16), "layers__0__mask": (1,)}, [], []),
        ({"tok__weight": None}, ["tok.weight is missing"], []),
        (
            {"layers__1__wq__weight": None, "layers__1__wk__weight": (32, 16)},
            ["layers.1.wq.weight is missing; did you mean 'layers.1.wk.weight'?"],
            ["layers.1.wk.weight is unexpected; did you mean 'layers.1.wq.weight'?"],
        ),
        (
            {f"layers__{i}__wq__weight": None for i in range(3)},
            ["layers.{0..2}.wq.weight are missing"],
            [],
        ),
        ({"tok__weight": (49, 16)}, ["tok.weight: V is 50 from the config, 49 in the file"], []),
        (
            {"tok__weight": (50, 16, 1)},
            ["tok.weight: shape is (50, 16) from the config, (50, 16, 1) in the file"],
            [],
        ),
    ],
)
def test_each_problem_is_reported_once(tmp_path, changes, problems, unexpected):
    found = check_tensors(TABLE, RULES, tensors(tmp_path, **changes))
    assert found.problems == problems
    assert found.unexpected == unexpected


def test_arrays_and_rules_that_do_not_match_are_named():
    shapes = {"embed.embedding": (50, 16)}
    shapes |= {f"layers.{i}.attn.q_proj.kernel": (16, 4, 8) for i in range(3)}
    assert check_arrays(RULES, shapes) == []
    [found] = check_arrays(RULES, shapes | {"norm.scale": (16,)})
    assert found == "no rule covers norm.scale of the model"
    [found] = check_arrays(RULES, shapes | {"embed.embedding": (51, 16)})
    assert found == "the rule for embed.embedding says (V) is 50, but the model has 51"
    del shapes["embed.embedding"]
    [found] = check_arrays(RULES, shapes)
    assert found == "a rule names embed.embedding, which the model does not have"


def test_ignored_tensors_have_a_reason():
    assert reason_to_ignore(TABLE, "layers.7.mask") == "a constant"
    assert reason_to_ignore(TABLE, "layers.7.wq.weight") is None


def test_a_config_that_asks_for_far_more_tensors_than_there_are_is_reported(tmp_path):
    """Before the model is laid out, which takes time for each layer and expert."""
    stored = tensors(tmp_path)
    check_count(TABLE, stored)
    many = RuleTable(TABLE.rules, {**SIZES, "L": 10_000})
    with pytest.raises(ValueError, match="asks for 10,001 tensors, but there are only 4"):
        check_count(many, stored)
    half = {f"layers.{i}.wq.weight": next(iter(stored.values())) for i in range(5000)}
    check_count(many, half)
    few = Rule("w.{L} : N D", "layers.{L}.w : D N", layers=range(10))
    check_count(RuleTable((few,), {**SIZES, "L": 10_000}), stored)


def test_only_the_first_of_many_problems_are_listed(tmp_path):
    """Each may need a search for the name that was meant."""
    names = {f"strange{chr(97 + i % 26)}{chr(97 + i // 26)}": (1,) for i in range(200)}
    found = check_tensors(TABLE, RULES, tensors(tmp_path, **names)).unexpected
    assert len(found) == 101
    assert found[-1] == "and 100 more of this kind"
