"""Configs and tensors in Llama's line: read, written, and named as transformers names them."""

import json

import pytest
import transformers
from stored_shapes import shapes_in_model, shapes_in_rules
from tiny import TINY

from jaxllm.config import ExpertsConfig, LayerKind, with_fields
from jaxllm.interop.families.common.config_fields import fields_read
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.common.llama_like import (
    ACTIVATIONS,
    attention_rules,
    gated_mlp_rules,
    layer_norm_rules,
    layers_with_mlp,
    llama_table,
    outer_rules,
    read_activation,
    read_attention_bias,
    read_decoder,
    with_prefix,
    write_activation,
    write_decoder,
)
from jaxllm.interop.rules.rule import Rule

BARE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
}
HUGGING_FACE = {
    **BARE,
    **{"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512},
}


def test_a_config_that_says_little_is_llama_s():
    fields = Fields(dict(BARE))
    found = read_decoder(fields)
    theirs = transformers.LlamaConfig(**BARE)
    assert fields.finish() == []
    assert (found["num_kv_heads"], found["head_dim"]) == (4, theirs.head_dim) == (4, 8)
    assert found["max_len"] == theirs.max_position_embeddings
    assert found["norms.eps"] == theirs.rms_norm_eps
    assert found["head.tied"] == theirs.tie_word_embeddings
    assert found["init.std"] == theirs.initializer_range


def test_a_family_has_defaults_of_its_own_where_the_file_is_silent():
    own = {"num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5}
    found = read_decoder(Fields(dict(BARE)), **own)
    assert (found["num_kv_heads"], found["head_dim"], found["norms.eps"]) == (2, 64, 1e-5)
    found = read_decoder(Fields({**BARE, "num_key_value_heads": None, "head_dim": 8}), **own)
    assert (found["num_kv_heads"], found["head_dim"]) == (4, 8)


def test_what_bears_on_no_number_is_not_used_and_what_does_is_refused():
    harmless = {"bos_token_id": 1, "use_cache": True, "attention_dropout": 0.1}
    fields = Fields({**BARE, **harmless, "is_causal": False}, fields_read("llama"))
    read_decoder(fields)
    assert {fields.uses()[name] for name in harmless} == {"not used"}
    [problem] = fields.finish()
    assert "is_causal=False" in problem


@pytest.mark.parametrize("bias", [True, False])
def test_one_field_says_all_biases_of_attention(bias):
    found = read_attention_bias(Fields({"attention_bias": bias}))
    assert set(found.values()) == {bias}
    assert found.keys() == {"attention.qkv_bias", "attention.out_bias"}
    assert read_attention_bias(Fields({}), default=bias) == found


def test_what_is_written_reads_the_same():
    """As version 4 has it: fields of version 5 alone are left out, what else there was is kept."""
    base = {"dtype": "float32", "rope_parameters": {}, "bos_token_id": 7}
    config = with_fields(TINY, {"norms.eps": 1e-5, "head.tied": True, "init.std": 0.03})
    written = write_decoder(config, base, "llama", "LlamaForCausalLM")
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["bos_token_id"] == 7
    assert written["torch_dtype"] == "float32"
    assert not {"dtype", "rope_parameters"} & written.keys()
    found = read_decoder(Fields(json.loads(json.dumps(written))))
    assert found == {
        **{"vocab_size": 96, "embed_dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2},
        **{"head_dim": 16, "mlp_dim": 56, "max_len": 512},
        **{"norms.eps": 1e-5, "head.tied": True, "init.std": 0.03, "mlp.activation": "silu"},
    }


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_read_by_every_name_and_keeps_it(name):
    fields = Fields({"hidden_act": name})
    activation = read_activation(fields, "hidden_act", "silu")
    assert not fields.problems
    config = with_fields(TINY, {"mlp.activation": activation})
    assert write_activation(config, "hidden_act", {"hidden_act": name}) == {"hidden_act": name}
    written = write_activation(config, "hidden_act", {})
    assert read_activation(Fields(written), "hidden_act", "relu") == activation


def test_an_activation_that_is_not_known_is_named():
    fields = Fields({"hidden_act": "mish"})
    assert read_activation(fields, "hidden_act", "gelu_new") == "gelu_tanh"
    assert "hidden_act='mish'" in fields.problems[0]
    assert all(name in fields.problems[0] for name in ACTIVATIONS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_tensors_are_those_of_a_llama(tied, bias):
    switches = {"attention_bias": bias, "mlp_bias": bias, "tie_word_embeddings": tied}
    theirs = transformers.LlamaConfig(**HUGGING_FACE, **switches)
    expected = shapes_in_model(lambda: transformers.LlamaForCausalLM(theirs))
    biases = dict.fromkeys(("attention.qkv_bias", "attention.out_bias", "mlp.bias"), bias)
    table = llama_table(with_fields(TINY, {**biases, "head.tied": tied}), Layout())
    found = shapes_in_rules(table.rules, table.sizes)
    assert found == {name: expected[name] for name in expected.keys() - table.tied.keys()}
    assert table.tied == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})


@pytest.mark.parametrize(
    ("kind", "make", "model"),
    [
        ("head", transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        ("full", transformers.Olmo2Config, transformers.Olmo2ForCausalLM),
    ],
)
def test_norms_of_queries_and_keys_are_those_of_transformers(kind, make, model):
    """Of each head in Qwen 3, of all heads together in OLMo 2."""
    expected = shapes_in_model(lambda: model(make(**{**HUGGING_FACE, "head_dim": 8})))
    config = with_fields(TINY, {"attention.qk_norm": kind}, head_dim=8)
    found = shapes_in_rules(attention_rules(config), decoder_sizes(config))
    assert found == {name: expected[name] for name in expected if ".self_attn." in name}


def test_rotated_pairs_are_permuted_only_if_they_lie_otherwise():
    """Pairs of neighbors in the checkpoint, halves or neighbors in the model."""
    for layout, pairs in (("half", "(r h)"), ("interleaved", "(h r)")):
        config = with_fields(TINY, {"rope.layout": layout})
        query = attention_rules(config, stored_pairs="h r")[0]
        assert query.stored.text.endswith(": (N h r) D")
        assert query.model.text.endswith(f": D N {pairs}")


def test_an_mlp_may_be_on_some_layers_and_elsewhere():
    rules = gated_mlp_rules(TINY, [0, 2], theirs="shared", ours="mlp.shared", width="S")
    found = shapes_in_rules(rules, {**decoder_sizes(TINY), "S": 24})
    assert found.keys() == {
        f"model.layers.{i}.shared.{x}_proj.weight" for i in (0, 2) for x in ("gate", "up", "down")
    }
    assert found["model.layers.2.shared.down_proj.weight"] == (32, 24)
    assert rules[0].model.name == "layers.{L}.mlp.shared.gate_proj.kernel"


def test_a_part_of_another_model_has_its_prefix():
    rules = [*outer_rules(TINY), Rule("{C}.{L}.w : D", "layers.{L}.w : D", "C", layers=[1])]
    for before, after in zip(rules, with_prefix("text.", rules), strict=True):
        assert after.stored.text == "text." + before.stored.text
        assert (after.model, after.replicated, after.layers) == (
            before.model,
            before.replicated,
            before.layers,
        )


def test_a_norm_with_a_bias_has_two_tensors():
    sides = [(rule.stored.text, rule.model.text) for rule in layer_norm_rules("ln_f", "norm")]
    assert sides == [("ln_f.weight : D", "norm.scale : D"), ("ln_f.bias : D", "norm.bias : D")]


def test_layers_are_told_apart_by_their_mlps():
    pattern = (LayerKind(), LayerKind(mlp="experts"))
    experts = ExpertsConfig(num_experts=2, top_k=1, mlp_dim=8)
    config = with_fields(TINY, {"pattern": pattern, "experts": experts}, num_layers=5)
    assert layers_with_mlp(config, "dense") == [0, 2, 4]
    assert layers_with_mlp(config, "experts") == [1, 3]
