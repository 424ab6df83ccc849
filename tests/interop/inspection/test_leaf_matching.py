"""Matching leaves: groups of names that count, likeness of names, and the best pairs."""

import pytest

from jaxllm.interop.inspection.leaf_matching import GAP, Group, LeafMatcher, group_names


def test_names_that_count_from_zero_are_one_group():
    shapes = {f"h.{i}.w": (3,) for i in range(2)} | {
        f"b.{i}.{j}": (1,) for i in (0, 1) for j in "xy"
    }
    assert group_names(shapes) == [
        Group(f"h.{GAP}.w", (3,), (2,)),
        Group(f"b.{GAP}.x", (1,), (2,)),
        Group(f"b.{GAP}.y", (1,), (2,)),
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        {"h.1.w": (3,), "h.2.w": (3,)},  # not from 0
        {"h.0.w": (3,), "h.1.w": (4,)},  # not of one shape
        {"h.0.w": (3,)},  # only one
        {"w1": (3,), "w0": (3,)},  # no number of its own
    ],
)
def test_other_numbers_are_part_of_the_name(shapes):
    assert {group.name: group.shape for group in group_names(shapes)} == shapes


def test_numbers_of_leaves_count_only_what_tensors_count():
    leaves = {f"layers.{i}.norms.{j}": (4,) for i in range(3) for j in range(2)}
    assert group_names(leaves) == [Group(f"layers.{GAP}.norms.{GAP}", (4,), (3, 2))]
    assert group_names(leaves, [{3}]) == [
        Group(f"layers.{GAP}.norms.{j}", (4,), (3,)) for j in range(2)
    ]


def matcher(tensors, leaves, aliases={}):  # noqa: B006 - not changed
    return LeafMatcher(tensors, leaves, aliases)


def named(pairs):
    return {one.name.replace(GAP, "*"): leaf.name.replace(GAP, "*") for one, leaf in pairs.items()}


def test_names_decide_between_equal_shapes():
    tensors = {"a.q_proj.weight": (4, 4), "a.o_proj.weight": (4, 4), "a.norm.weight": (4,)}
    leaves = {"x.norm": (4,), "x.out": (4, 4), "x.query": (4, 4)}
    assert named(matcher(tensors, leaves).pairs()) == {
        "a.q_proj.weight": "x.query",
        "a.o_proj.weight": "x.out",
        "a.norm.weight": "x.norm",
    }


def test_the_order_decides_between_equal_names():
    tensors = {"a_norm": (4,), "b_norm": (4,), "c": (3,)}
    leaves = {"norm1": (4,), "norm2": (4,), "other": (2,)}
    assert named(matcher(tensors, leaves).pairs()) == {"a_norm": "norm1", "b_norm": "norm2"}


def test_other_names_of_tensors_help():
    tensors = {"input": (4,), "post": (4,)}
    leaves = {"mlp_norm": (4,), "attn_norm": (4,)}
    aliases = {"input": "layers.0.attn_norm.scale", "post": "layers.0.mlp_norm.scale"}
    assert named(matcher(tensors, leaves, aliases).pairs()) == {
        "input": "attn_norm",
        "post": "mlp_norm",
    }


def test_a_leaf_may_have_the_name_of_a_tensor_with_other_names():
    shapes = {"input": (4,), "post": (4,)}
    aliases = {"input": "layers.0.attn_norm.scale", "post": "layers.0.mlp_norm.scale"}
    assert named(matcher(shapes, shapes, aliases).pairs()) == {"input": "input", "post": "post"}


def test_shapes_rule_pairs_out():
    one = matcher({"q.weight": (4, 5)}, {"q": (4, 4)})
    assert one.fit(one.stored[0], one.leaves[0]) == 0
    assert one.pairs() == {}
    assert matcher({}, {}).pairs() == {}


def test_parts_of_a_fused_tensor_add_up_to_its_rows():
    leaves = {"up": (8, 3), "gate": (8, 3), "down": (3, 8)}
    one = matcher({"gate_up.weight": (6, 8), "down.weight": (8, 3)}, leaves)
    pairs = one.pairs()
    assert named(pairs) == {"down.weight": "down"}
    ((whole, parts),) = one.fused(pairs).items()
    assert whole.name == "gate_up.weight"
    assert [(part.tensor.name, part.tensor.shape, part.leaf.name) for part in parts] == [
        ("gate_up.weight#gate", (3, 8), "gate"),
        ("gate_up.weight#up", (3, 8), "up"),
    ]
    other = matcher({"gate_up.weight": (7, 8)}, leaves)
    assert other.fused({}) == {}
