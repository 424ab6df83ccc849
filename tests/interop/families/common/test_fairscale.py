"""Model-parallel shards have what divides evenly, and one alone does not say that it is one."""

import pytest

from jaxllm.interop.families.common.fairscale import SHARD, split_sizes, without_shards
from jaxllm.interop.rules.rule import Rule

SIZES = {"N": 8, "F": 24, "D": 16}


def test_each_shard_has_its_share():
    found = split_sizes(SIZES, 4, {"n_heads": "N", "mlp_dim": "F"})
    assert found == {**SIZES, "n": 2, "f": 6, "T": 4}


def test_what_does_not_divide_is_named_together():
    with pytest.raises(ValueError, match="5 model-parallel shards do not divide") as error:
        split_sizes(SIZES, 5, {"n_heads": "N", "mlp_dim": "F"}, ["vocab_size=96"])
    assert str(error.value).endswith("n_heads=8, mlp_dim=24, vocab_size=96")


def test_a_rule_of_one_shard_names_none():
    rule = without_shards(Rule(SHARD + "w.{L} : f D", "layers.{L}.w : D (T f)"))
    assert rule.stored.text == "w.{L} : f D"
    assert rule.model.text == "layers.{L}.w : D f"
