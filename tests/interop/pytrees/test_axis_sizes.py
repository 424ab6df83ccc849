"""Sizes of axes: found from labels, names, leaves and tensors, in this order."""

from collections.abc import Mapping

from jaxllm.interop.pytrees.axis_sizes import solve_sizes
from jaxllm.interop.rules.rule import Rule

NONE: Mapping = {}


def solve(rules, leaves, tensors=NONE, given=NONE, stacks=NONE):
    return solve_sizes(rules, given, leaves, stacks, tensors)


def test_leaves_give_the_sizes_of_their_dimensions():
    rules = [Rule("w : (N H) D", "q.w : D N H")]
    assert solve(rules, {"q.w": (6, 2, 4)}) == {"D": 6, "N": 2, "H": 4}


def test_merged_axes_follow_from_the_others():
    rules = [
        Rule("q : (N H) D", "q : D (N H)"),
        Rule("k : (K H) D", "k : D (K H)"),
        Rule("scale : H", "scale : H"),
    ]
    leaves = {"q": (6, 8), "k": (6, 4), "scale": (2,)}
    assert solve(rules, leaves) == {"D": 6, "H": 2, "N": 4, "K": 2}
    assert "N" not in solve(rules[:1], leaves)  # nothing says how the 8 divide
    assert solve(rules[:1], leaves, given={"N": 4})["H"] == 2


def test_names_give_the_number_of_layers_and_experts():
    rules = [
        Rule("h.{L}.w : D", "blocks.{L}.w : D"),
        Rule("{L:02}.{E}.u : D", "experts : L E D"),
        Rule("a.{X Y}.v : D", "b.{X}.{Y}.v : D"),
    ]
    leaves = {"blocks.0.w": (3,), "blocks.1.w": (3,), "experts": (2, 4, 3)}
    leaves |= {f"b.{x}.{y}.v": (3,) for x in range(2) for y in range(5)}
    assert solve(rules, leaves) == {"L": 2, "D": 3, "E": 4, "X": 2, "Y": 5}


def test_stored_names_count_what_the_tree_stacks():
    rules = [Rule("h.{L}.w : D", "w : (L D)")]
    tensors = {f"h.{i}.w": (3,) for i in range(4)}
    assert solve(rules, {"w": (12,)}, tensors) == {"L": 4, "D": 3}


def test_labels_count_themselves():
    rules = [Rule("w : (P D)", "{P=q|k|v} : D")]
    assert solve(rules, {"q": (5,)}) == {"P": 3, "D": 5}


def test_stacked_layers_of_jaxllm_count_by_their_labels():
    stacks = {"layers": {"0": range(1), "1:4": range(1, 4)}}
    rules = [Rule("h.{L}.w : D", "layers.{L}.w : D")]
    leaves = {"layers.1:4.w": (3, 7), "layers.0.w": (7,)}
    assert solve(rules, leaves, stacks=stacks) == {"L": 4, "D": 7}


def test_leaves_decide_where_tensors_contradict_them():
    rules = [Rule("w : A B", "w : B A")]
    assert solve(rules, {"w": (2, 3)}, {"w": (30, 20)}) == {"B": 2, "A": 3}


def test_sizes_that_do_not_divide_are_left_open():
    rules = [Rule("w : (N H)", "w : (N H)")]
    assert solve(rules, {"w": (7,)}, given={"N": 2}) == {"N": 2}
