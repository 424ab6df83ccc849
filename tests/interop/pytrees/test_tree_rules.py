"""Rules for trees: from a list, an object or a file, with every attribute checked."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxllm.errors import CheckpointError
from jaxllm.interop.pytrees.tree_rules import read_tree_rules
from jaxllm.interop.rules.rule import Rule
from jaxllm.interop.rules.rules_file import RulesError

RULE = Rule("w : A B", "w : B A")


def test_a_list_an_object_and_a_file_give_the_same_rules(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text('from jaxllm.interop import Rule\nrules = [Rule("w : A B", "w : B A")]\n')
    found = [read_tree_rules(given) for given in ([RULE], SimpleNamespace(rules=[RULE]), file)]
    assert [one.rules for one in found] == [(RULE,)] * 3
    assert found[2].name == "mine.py"
    assert read_tree_rules(found[0]) is found[0]


def test_all_attributes_reach_the_table():
    given = SimpleNamespace(
        rules=[RULE],
        sizes={"A": 2},
        tied={"copy": "w"},
        ignored={"*.mask": "a constant"},
        derived={"ids": lambda: np.arange(3)},
        kept={"rope.*": "computed"},
    )
    rules = read_tree_rules(given)
    table = rules.table({"A": 2, "B": 3}, ())
    assert (table.rules, table.sizes) == ((RULE,), {"A": 2, "B": 3})
    assert (table.tied, table.ignored) == (given.tied, given.ignored)
    assert [(one.name, list(one.compute())) for one in table.derived] == [("ids", [0, 1, 2])]
    assert rules.keeps("rope.angles")
    assert not rules.keeps("w")


def test_copies_are_stored_if_the_checkpoint_has_them_or_there_is_none():
    rules = read_tree_rules(SimpleNamespace(rules=[RULE], tied={"copy": "w"}))
    assert rules.table({}, ()).copies == ["copy"]
    assert rules.table({}, ("w", "copy")).copies == ["copy"]
    assert rules.table({}, ("w",)).copies == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([RULE, "w"], "rules: 'w' is not a Rule"),
        (SimpleNamespace(rules=[1]), "rules: 1 is not a Rule"),
        (SimpleNamespace(), "rules: rules is missing"),
        (SimpleNamespace(rules=lambda config: []), "rules is a function; rules for a pytree"),
        (SimpleNamespace(rules=[RULE], sizes=[2]), "rules: sizes is a list; it must be a dict"),
        (SimpleNamespace(rules=[RULE], kept=lambda: {}), "kept is a function; it must be a dict"),
        (SimpleNamespace(rules=[RULE], arguments=()), "arguments is a tuple; it must be a func"),
    ],
)
def test_wrong_attributes_are_named(given, message):
    with pytest.raises(RulesError, match=message):
        read_tree_rules(given)


def test_unknown_masks_are_named():
    with pytest.raises(CheckpointError, match=r"rules: masks=\['targets_mask'\] are unknown"):
        read_tree_rules(SimpleNamespace(rules=[RULE], masks=["targets_mask"]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        read_tree_rules(tmp_path / "no.py")
