"""The tensors of Meta's Llamas by all their names, whole and in shards."""

import numpy as np
import pytest
from stored_shapes import shapes_in_model, shapes_in_rules
from tiny import TINY

from jaxllm.config import ExpertsConfig, LayerKind, with_fields
from jaxllm.interop.families.common.fairscale import without_shards
from jaxllm.interop.families.meta.tensor_names import (
    copied_heads,
    frequencies,
    has_frequencies,
    llama_rules,
    names_in,
    sharded_sizes,
)
from jaxllm.interop.reference.llm.model import LLM, ModelArgs

DENSE, EXPERTS = LayerKind(), LayerKind(mlp="experts")
CONFIG = with_fields(
    TINY,
    pattern=(DENSE, EXPERTS),
    experts=ExpertsConfig(num_experts=3, top_k=1, mlp_dim=24, shared_mlp_dim=24),
    head_dim=8,
    num_layers=4,
)
ARGS = ModelArgs.from_json(
    {
        **{"dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 96},
        "multiple_of": 8,
        "moe_args": {"num_experts": 3, "interleave_moe_layer_step": 2},
    }
)
OWN_NAMES = ("dense:feed_forward.w_gate.weight", "dense:feed_forward.w_out.weight")
RELEASED = (
    *("outer:lm_head.weight", "dense:attention.wqkv.weight", "experts:attention.wqkv.weight"),
    *("dense:feed_forward.mlp.fc1_weight", "dense:feed_forward.mlp.fc2_weight"),
    *("experts:feed_forward.experts.moe_w_in_eD_F", "experts:feed_forward.w_in_shared_FD.weight"),
    *("dense:feed_forward.mlp.layer_norm_weight", "experts:feed_forward.norm.weight"),
)


def whole(names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    rules = map(without_shards, llama_rules(CONFIG, names))
    return shapes_in_rules(rules, sharded_sizes(CONFIG, 1))


def test_by_the_names_of_its_modules_they_are_those_of_an_llm():
    """The widths follow from the arguments there and are given here."""
    expected = shapes_in_model(lambda: LLM(ARGS))
    F = expected["layers.0.feed_forward.w_gate.weight"][0]
    X = expected["layers.1.feed_forward.experts.w1"][2]
    experts = ExpertsConfig(num_experts=3, top_k=1, mlp_dim=X, shared_mlp_dim=X)
    config = with_fields(CONFIG, mlp_dim=F, experts=experts)
    rules = map(without_shards, llama_rules(config, OWN_NAMES))
    assert shapes_in_rules(rules, sharded_sizes(config, 1)) == expected


def test_layers_of_one_kind_go_by_the_names_that_their_kind_has():
    found = whole(RELEASED)
    assert found["lm_head.weight"] == (96, 32)
    for i in (0, 2):
        assert found[f"layers.{i}.attention.wqkv.weight#q"] == (32, 32)
        assert found[f"layers.{i}.attention.wqkv.weight#k"] == (16, 32)
        assert found[f"layers.{i}.feed_forward.mlp.fc1_weight#gate"] == (56, 32)
        assert f"layers.{i}.feed_forward.mlp.layer_norm_weight" in found
    for i in (1, 3):
        assert found[f"layers.{i}.feed_forward.experts.moe_w_in_eD_F"] == (3 * 32, 24)
        assert found[f"layers.{i}.feed_forward.experts.moe_w_out_eF_D"] == (3 * 24, 32)
        assert found[f"layers.{i}.feed_forward.w_out_shared_DF.weight"] == (32, 24)
        assert found[f"layers.{i}.feed_forward.norm.weight"] == (32,)
    assert not any("ffn_norm" in name or ".wq." in name for name in found)


@pytest.mark.parametrize("names", [(), OWN_NAMES, RELEASED])
def test_names_are_found_in_the_tensors_that_have_them(names):
    """Those that the rules choose by default are Meta's own, the first of each group."""
    stored = {name.partition("#")[0] for name in whole(names)}
    found = names_in(
        [f"{shard}/{name}" for shard in ("00", "01") for name in stored], CONFIG.pattern
    )
    assert set(names) <= set(found)
    assert whole(found) == whole(names)
    assert list(found) == sorted(set(found))


def test_what_every_checkpoint_calls_alike_is_no_alternative():
    assert names_in(["00/norm.weight", "layers.0.attention.wo.weight"], (DENSE,)) == ()
    names = names_in(["00/rope.freqs", "01/rope.freqs"], (DENSE,))
    assert names == ("outer:rope.freqs",)
    assert has_frequencies(names)
    assert not has_frequencies(RELEASED)


def test_a_shard_has_its_part_of_each_projection():
    sizes = sharded_sizes(CONFIG, 2)
    found = shapes_in_rules(llama_rules(CONFIG, ()), sizes)
    for rank in ("00", "01"):
        attention = f"{rank}/layers.2.attention."
        assert found[f"{attention}wq.weight"] == (16, 32)
        assert found[f"{attention}wk.weight"] == (8, 32)
        assert found[f"{attention}wo.weight"] == (32, 16)
        assert found[f"{rank}/layers.2.feed_forward.w2.weight"] == (32, 28)
        assert found[f"{rank}/layers.3.feed_forward.experts.w1"] == (3, 32, 12)
        assert found[f"{rank}/layers.3.feed_forward.router_DE"] == (32, 3)
        assert found[f"{rank}/tok_embeddings.weight"] == (48, 32)
        assert found[f"{rank}/norm.weight"] == (32,)


def test_more_shards_than_key_value_heads_share_them():
    sizes = sharded_sizes(CONFIG, 4)
    assert (sizes["U"], sizes["R"], sizes["k"], sizes["n"]) == (2, 2, 1, 1)
    found = shapes_in_rules(llama_rules(CONFIG, ()), sizes)
    assert found["03/layers.0.attention.wk.weight"] == (8, 32)  # a whole head
    assert len([name for name in found if name.endswith("layers.0.attention.wv.weight")]) == 4


def test_an_embedding_may_be_cut_in_its_width():
    """As Llama 2's was."""
    sizes = sharded_sizes(CONFIG, 2, cut_width=True)
    found = shapes_in_rules(llama_rules(CONFIG, (), cut_width=True), sizes)
    assert found["01/tok_embeddings.weight"] == (96, 16)
    assert found["01/output.weight"] == (48, 32)


@pytest.mark.parametrize(
    ("shards", "words"),
    [(3, "num_heads=4, mlp_dim=56, num_kv_heads=2"), (8, "num_heads=4"), (5, "experts.mlp_dim=24")],
)
def test_shards_that_do_not_divide_are_refused_with_the_sizes(shards, words):
    with pytest.raises(ValueError, match=f"{shards} model-parallel shards") as error:
        sharded_sizes(CONFIG, shards)
    assert words in str(error.value)


def test_a_tied_head_is_a_copy_in_every_shard():
    tied = with_fields(CONFIG, {"head.tied": True})
    assert copied_heads(CONFIG, (), ["00/"]) == {}
    assert copied_heads(tied, ("outer:lm_head.weight",), ["00/", "01/"]) == {
        "00/lm_head.weight": "00/tok_embeddings.weight",
        "01/lm_head.weight": "01/tok_embeddings.weight",
    }
    assert not any("lm_head.kernel" in rule.model.name for rule in llama_rules(tied, ()))


def test_frequencies_are_those_of_rope():
    config = with_fields(CONFIG, {"rope.theta": 500.0, "numerics.param_dtype": "float16"})
    found = frequencies(config)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, [500.0 ** (-2 * j / 8) for j in range(4)], rtol=1e-3)
