"""A set of rules: nothing is written twice, nothing is left out, parts add up."""

import re

import numpy as np
import pytest

from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.loading.diagnostics import check_arrays, check_tensors
from jaxllm.interop.loading.plan import split_fused
from jaxllm.interop.rules.binding import bind, fused_parts
from jaxllm.interop.rules.rule import Rule

SIZES = {"L": 2, "N": 3, "K": 2, "H": 2, "D": 5, "A": 11, "B": 12}
STACKS = {"layers": {"0:2": range(2)}}
WQ = Rule("{L}.wq : (N H) D", "layers.{L}.q.kernel : D N H")


def tensors(**shapes: tuple[int, ...]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(name, np.dtype(np.float32), shape, "nowhere", 0)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [WQ, Rule("{L}.wk : (N H) D", "layers.{L}.q.kernel : D N H")],
            "layers.0:2.q.kernel is written twice, for 0.wq and for 0.wk",
        ),
        (
            [WQ, Rule("{L}.wq : (N H) D", "layers.{L}.k.kernel : D N H")],
            "0.wq is written twice, for layers.0:2.q.kernel and for layers.0:2.k.kernel",
        ),
        ([WQ, WQ], "0.wq is written twice"),
        (
            [Rule("x{A}{B} : D", "b : A B D")],
            "x110 is written twice, at A=1, B=10 and at A=11, B=0",
        ),
        ([Rule("a : A B", "b{A}{B} : ")], "b110 is written twice, at A=1, B=10 and at A=11, B=0"),
        ([Rule("w : N D", "a : N D"), Rule("w#k : K D", "b : K D")], "w is stored both whole"),
        (
            [Rule("w#q : N D", "a : N D"), Rule("w#k : K H", "b : K H")],
            "w#k has shape (2, 2), w#q has shape (3, 5): parts of one fused tensor may differ only",
        ),
    ],
)
def test_overlapping_rules_and_mismatched_parts_are_rejected(rules, message):
    sizes = {**SIZES, "A": 12, "B": 11}
    with pytest.raises(ValueError, match=re.escape(message)):
        bind(rules, sizes, STACKS)


def test_one_error_lists_every_problem():
    rules = [WQ, WQ, Rule("a : U", "b : U"), Rule("c.{G=x|y} : D", "d : G D")]
    with pytest.raises(ValueError, match="U has no size") as caught:
        bind(rules, {**SIZES, "G": 3}, STACKS)
    assert "G is 3, but has the labels x|y" in str(caught.value)
    assert "0.wq is written twice" in str(caught.value)


def test_arrays_without_a_matching_rule_are_named():
    rules = bind([WQ, Rule("norm : D", "final_norm.scale : D")], SIZES, STACKS)
    shapes = {
        "layers.0:2.q.kernel": (2, 5, 4, 2),
        "layers.0:2.q.bias": (2, 4, 2),
        "final_nrom.scale": (5,),
    }
    assert check_arrays(rules, shapes) == [
        "no rule covers layers.0:2.q.bias of the model",
        "no rule covers final_nrom.scale of the model; did you mean 'final_norm.scale'?",
        "a rule names final_norm.scale, which the model does not have; "
        "did you mean 'final_nrom.scale'?",
        "the rule for layers.0:2.q.kernel says (N) is 3, but the model has 4",
    ]


def test_parts_that_do_not_add_up_to_the_fused_tensor_are_named():
    rules = [Rule("w#q : (N H) D", "q : D N H"), Rule("w#k : (K H) D", "k : D K H")]
    table = RuleTable(tuple(rules), SIZES)
    bound = table.bound(STACKS)
    assert fused_parts(bound) == {"w": {"w#q": (6, 5), "w#k": (4, 5)}}
    right, wrong = tensors(w=(10, 5)), tensors(w=(12, 5))
    assert check_tensors(table, bound, split_fused(bound, right)) == ([], [])
    problems, unexpected = check_tensors(table, bound, split_fused(bound, wrong))
    assert problems == [
        "w: q (N H) 6 + k (K H) 4 = 10 rows from the config, shape (12, 5) in the file"
    ]
    assert unexpected == []
    problems, _ = check_tensors(table, bound, split_fused(bound, tensors(w=(10, 7))))
    assert problems == [f"w#{part}: D is 5 from the config, 7 in the file" for part in "qk"]


def test_parts_with_an_index_go_by_it_first():
    rules = [Rule("w#{K}q : (g H) D", "q : D (K g) H"), Rule("w#{K}k : H D", "k : D K H")]
    bound = bind(rules, {"K": 11, "g": 2, "H": 3, "D": 5}, {})
    (parts,) = fused_parts(bound).values()
    assert [*parts] == [f"w#{k}{part}" for k in range(11) for part in "qk"]
    assert [shape[0] for shape in parts.values()] == [6, 3] * 11
