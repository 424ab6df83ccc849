"""Model-parallel shards split axes evenly; unsharded names have no shard prefix."""

import pytest

from jaxllm.interop.families.common.fairscale import SHARD, split_sizes, without_shards
from jaxllm.interop.rules.rule import Rule

SIZES = {"N": 8, "F": 24, "D": 16}


def test_split_axes_are_divided_by_the_shards():
    found = split_sizes(SIZES, 4, {"n_heads": "N", "mlp_dim": "F"})
    assert found == {**SIZES, "n": 2, "f": 6, "T": 4}


def test_all_sizes_that_do_not_divide_are_named_together():
    with pytest.raises(ValueError, match="5 model-parallel shards do not divide") as error:
        split_sizes(SIZES, 5, {"n_heads": "N", "mlp_dim": "F"}, ["vocab_size=96"])
    assert str(error.value).endswith("n_heads=8, mlp_dim=24, vocab_size=96")


def test_a_rule_without_shards_has_no_prefix():
    rule = without_shards(Rule(SHARD + "w.{L} : f D", "layers.{L}.w : D (T f)"))
    assert rule.stored.text == "w.{L} : f D"
    assert rule.model.text == "layers.{L}.w : D f"
