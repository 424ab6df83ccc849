"""Fitting rules to trees: what has no rule, no leaf, no size or another shape is named at once."""

from types import SimpleNamespace

import numpy as np

from jaxllm.interop.pytrees.fitting import fit_rules
from jaxllm.interop.pytrees.leaves import NamedLeaves
from jaxllm.interop.pytrees.tree_rules import read_tree_rules
from jaxllm.interop.rules.rule import Rule

RULES = [Rule("h.{L}.w : B A", "blocks.{L}.w : A B"), Rule("n : A", "norm : A")]


def leaf(*shape):
    return np.zeros(shape, np.float32)


def tree(**changes):
    return {"blocks": [{"w": leaf(2, 3)}, {"w": leaf(2, 3)}], "norm": leaf(2), **changes}


def fit(given, rules=RULES, **attributes):
    leaves = NamedLeaves.of(given)
    return fit_rules(leaves, read_tree_rules(SimpleNamespace(rules=rules, **attributes)))


def test_rules_that_fit_are_bound_to_every_leaf():
    found = fit(tree())
    assert found.problems == ()
    names = [name for bound in found.rules for name, _ in bound.rule.model.names(bound.sizes)]
    assert names == ["blocks.0.w", "blocks.1.w", "norm"]
    assert found.table.sizes == {"L": 2, "A": 2, "B": 3}


def test_every_problem_is_listed():
    given = tree(norm=leaf(5), more=leaf(1), bias=leaf(2))
    rules = [*RULES, Rule("b : A", "biases : A"), Rule("s : (N H)", "split : (N H)")]
    found = fit({**given, "split": leaf(6)}, rules)
    assert sorted(found.problems) == [
        "a rule names biases, which the model does not have; did you mean 'bias'?",
        "no rule covers bias of the model; did you mean 'biases'?",
        "no rule covers more of the model",
        "s <-> split: N and H has no size: give it in sizes",
        "the rule for norm says (A) is 2, but the model has 5",
    ]
    assert [rule.model.name for rule in found.unbound] == ["split"]


def test_a_rule_without_a_leaf_and_without_sizes_names_what_was_meant():
    found = fit(tree(), [*RULES, Rule("x : Z", "norms : Z")])
    assert found.problems == (
        "a rule names norms, which the model does not have; did you mean 'norm'?",
    )


def test_kept_leaves_need_no_rule_and_must_not_have_one():
    given = tree(rope={"angles": leaf(4)})
    assert fit(given, kept={"rope.*": "computed"}).problems == ()
    assert fit(given, kept={"*": "computed"}).problems == (
        *("blocks.0.w is kept, but a rule fills it", "blocks.1.w is kept, but a rule fills it"),
        "norm is kept, but a rule fills it",
    )


def test_copies_of_what_no_rule_names_are_named():
    (problem,) = fit(tree(), tied={"copy": "m", "other": "n"}).problems
    assert problem == "copy is tied to m, which no rule names"


def test_two_rules_for_one_leaf_are_named():
    (problem,) = fit(tree(), [*RULES, Rule("m : A", "norm : A")]).problems
    assert problem == "rules: norm is written twice, for n and for m"
