"""Suggesting rules for trees: those of docs/rules.md are found, and doubts are reported."""

from types import SimpleNamespace

import any_models
import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.interop import load_into, suggest
from jaxllm.interop.inspection.suggest_tree import IN_ORDER
from jaxllm.presets import gpt

PAGE = {"equinox": any_models.equinox_llama, "linen": any_models.linen_llama}


@pytest.fixture(scope="module")
def module():
    return any_models.torch_llama()


@pytest.fixture(scope="module")
def folder(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    module.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", PAGE)
def test_the_suggested_rules_load_what_those_of_the_page_do(name, module, folder):
    shapes, _, rules = PAGE[name]()
    wanted = jax.tree.leaves(load_into(shapes, folder, rules))
    for source in (folder, module):
        found = suggest(source, tree=shapes)
        assert (found.unmatched, found.unfilled, found.sizes, found.tied) == ({}, (), {}, {})
        again = load_into(shapes, folder, [one.rule for one in found.rules])
        for one, other in zip(jax.tree.leaves(again), wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_text_runs_as_a_rules_file(folder, tmp_path):
    shapes = any_models.equinox_llama().shapes
    (tmp_path / "mine.py").write_text(str(suggest(folder, tree=shapes)))
    load_into(shapes, folder, tmp_path / "mine.py")


def test_doubts_name_squares_and_rivals(folder):
    found = suggest(folder, tree=any_models.linen_llama().shapes)
    doubts = {one.rule.model.name: one.doubts for one in found.rules}
    (square,) = doubts["params.layers.query.kernel"]
    assert square.startswith("48 x 48 does not determine the layout; it could also be")
    (rival,) = doubts["params.layers.norm1.scale"]
    assert rival == "name and shape fit params.layers.norm2.scale about as well"
    assert doubts["params.layers.down.kernel"] == ()


def test_existing_rules_are_left_alone(folder):
    shapes, _, rules = any_models.linen_llama()
    assert str(suggest(folder, tree=shapes, rules=rules)) == "# every tensor has a rule already"
    own = SimpleNamespace(rules=rules[1:], kept={"params.norm.*": "mine"})
    found = suggest(folder, tree=shapes, rules=own)
    (only,) = found.rules
    assert only.rule.model.name == "params.embed.embedding"


def leaf(*shape):
    return np.zeros(shape, np.float32)


def test_fused_tensors_are_split_over_leaves():
    tree = {"h": [{n: {"w": leaf(8, k)} for n, k in (("q", 8), ("k", 4), ("v", 4))}] * 2}
    found = suggest({f"blocks.{i}.attn.qkv.weight": (16, 8) for i in range(2)}, tree=tree)
    sides = {one.rule.model.name: one.rule.stored.text for one in found.rules}
    assert list(sides) == ["h.{L}.q.w", "h.{L}.k.w", "h.{L}.v.w"]
    assert [text.partition(" : ")[0] for text in sides.values()] == [
        *(f"blocks.{{L}}.attn.qkv.weight#{part}" for part in "qkv"),
    ]
    assert all(IN_ORDER in one.doubts for one in found.rules)
    rng = np.random.default_rng(0)
    names = [f"blocks.{i}.attn.qkv.weight" for i in range(2)]
    stored = {name: rng.standard_normal((16, 8)).astype(np.float32) for name in names}
    loaded = load_into(tree, stored, [one.rule for one in found.rules])
    np.testing.assert_array_equal(loaded["h"][1]["k"]["w"].T, stored[names[1]][8:12])


def test_what_fits_nothing_is_listed_and_copies_of_the_embedding_are_tied():
    tensors = {"embed.weight": (9, 4), "head.weight": (9, 4), "odd": (7,), "n.weight": (4,)}
    found = suggest(tensors, tree={"embed": leaf(9, 4), "norm": leaf(4), "more": leaf(5)})
    assert found.tied == {"head.weight": "embed.weight"}
    assert found.unmatched == {"odd": (7,)}
    assert found.unfilled == ("more",)
    doubts = {one.rule.model.name: one.doubts for one in found.rules}
    assert doubts["norm"] == ("matched by shape only",)


def test_layers_that_are_stacked_or_not_on_either_side_are_matched():
    tensors = {f"net.{i}.{j}.up.weight": (6, 4) for i in range(3) for j in range(2)}
    for tree, name in (
        ({"up": leaf(3, 2, 4, 6)}, "up"),
        ({"layers": [{"up": leaf(2, 4, 6)}] * 3}, "layers.{L}.up"),
        ({"layers": [{"experts": [{"up": leaf(6, 4)}] * 2}] * 3}, "layers.{L}.experts.{E}.up"),
    ):
        (one,) = suggest(tensors, tree=tree).rules
        assert one.rule.stored.name == "net.{L}.{E}.up.weight"
        assert one.rule.model.name == name
    (one,) = suggest({"up": (3, 6, 4)}, tree={"layers": [{"up": leaf(4, 6)}] * 3}).rules
    assert [side.text for side in (one.rule.stored, one.rule.model)] == [
        "up : L D F",
        "layers.{L}.up : F D",
    ]


def test_a_config_and_a_tree_exclude_each_other(folder):
    with pytest.raises(UserError, match="a tree needs no config"):
        suggest(folder, gpt("tiny"), tree={})
