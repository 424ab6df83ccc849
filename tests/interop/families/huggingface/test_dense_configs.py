"""Configs of Gemma, Phi-3 and the GPTs: defaults, fields of old versions, unsupported values."""

import json

import pytest
import torch
import transformers
from hf_cases import CASES, longrope, tokens_of
from safetensors.torch import load_file, save_file
from tiny import TINY, relative_l2

from jaxllm.config import DecoderConfig, LayerKind, RopeScaling, make_config, with_fields
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}
# What every config must say; of GPT-2's everything has a default.
BARE = {
    "vocab_size": 96,
    "hidden_size": 128,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "intermediate_size": 56,
}
PREFIXES = {
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "phi3": "Phi3",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
}
LOCAL = LayerKind(attention="window", rope="local")
GEMMA = {
    "norms.kind": "rms_plus_one",
    "norms.placement": "sandwich",
    "embed_scale": TINY.embed_dim**0.5,
    "mlp.activation": "gelu_tanh",
}
GPT2 = {
    "norms.kind": "layer",
    "positions.kind": "learned",
    "mlp.gated": False,
    "mlp.bias": True,
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "num_kv_heads": 4,
    "head_dim": 8,
}
NEOX = {**GPT2, "positions.kind": "rope"}
UNEVEN = "attention.qkv_bias without attention.out_bias"


def bare(family: str) -> dict:
    return {} if family == "gpt2" else BARE


def read(family: str, **fields: object) -> DecoderConfig:
    """Reads a config file that holds little more than the sizes."""
    given = BY_NAME[family].fields({"model_type": family, **bare(family), **fields})
    values, _ = BY_NAME[family].read_config(given, {})
    assert given.finish() == []
    return make_config(values)


def problems(family: str, **fields: object) -> str:
    given = BY_NAME[family].fields({"model_type": family, **bare(family), **fields})
    BY_NAME[family].read_config(given, {})
    return "; ".join(given.finish())


@pytest.mark.parametrize("family", PREFIXES)
def test_defaults_equal_those_of_transformers(family):
    theirs = getattr(transformers, f"{PREFIXES[family]}Config")(**bare(family))
    ours = read(family)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.embed_dim == theirs.hidden_size
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
    assert ours.head_dim == getattr(
        theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads
    )
    assert ours.max_len == theirs.max_position_embeddings
    assert ours.head.tied == theirs.tie_word_embeddings
    assert ours.init.std == theirs.initializer_range
    eps = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    assert ours.norms.eps == next(getattr(theirs, name) for name in eps if hasattr(theirs, name))
    assert ours.attention.softcap == getattr(theirs, "attn_logit_softcapping", None)
    assert ours.head.softcap == getattr(theirs, "final_logit_softcapping", None)
    assert ours.attention.window == getattr(theirs, "sliding_window", None)
    types = [
        "sliding_attention" if k.attention == "window" else "full_attention" for k in ours.kinds
    ]
    assert types == getattr(theirs, "layer_types", types)
    if hasattr(theirs, "query_pre_attn_scalar"):
        assert ours.attention.scale == theirs.query_pre_attn_scalar**-0.5


@pytest.mark.parametrize("period", [1, 2, 3, 6, 9])
def test_gemma_3_has_full_attention_on_every_nth_layer(period):
    theirs = transformers.Gemma3TextConfig(**BARE, sliding_window_pattern=period)
    ours = read("gemma3_text", sliding_window_pattern=period)
    assert [kind == LOCAL for kind in ours.kinds] == [
        name == "sliding_attention" for name in theirs.layer_types
    ]
    assert (ours.attention.window is None) == (period == 1)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gemma2", {"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"}),
        ("gemma3_text", {"_sliding_window_pattern": 6, "use_bidirectional_attention": False}),
        ("phi3", {"auto_map": {}, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "lm_head_bias": False}),
        ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1, "attention_bias": False}),
        ("gpt_neox", {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}),
        ("gpt_neox", {"classifier_dropout": 0.1, "is_decoder": True}),
    ],
    ids=str,
)
def test_fields_that_do_not_affect_the_numbers_are_ignored(family, fields):
    assert read(family, **fields) == read(family)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_an_activation_with_several_names_keeps_its_name(name):
    config = read("gpt_neox", hidden_act=name)
    assert config.mlp.activation == "gelu_tanh"
    write = BY_NAME["gpt_neox"].write_config
    assert write(config, {"hidden_act": name})["hidden_act"] == name
    relu = with_fields(config, {"mlp.activation": "relu"})
    assert write(relu, {"hidden_act": name})["hidden_act"] == "relu"


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null"),
        ("gemma2", {"hidden_activation": "gelu_10"}, "hidden_activation='gelu_10'"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gpt2", {"layer_types": ["full_attention"]}, "layer_types=['full_attention'] is not"),
        ("gpt_neox", {"head_dim": 24}, "head_dim=24 is not supported"),
        ("gpt_neox", {"sliding_window": 8}, "sliding_window=8 is not supported"),
    ],
    ids=str,
)
def test_unsupported_values_are_refused(family, fields, words):
    assert words in problems(family, **fields)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {**GEMMA}, "norms.kind='rms_plus_one'"),
        ("llama", {"rope.fraction": 0.5}, "rope.fraction=0.5"),
        ("gemma2", {}, "norms.kind='rms'; norms.placement='pre'; embed_scale=1.0, only 5.6"),
        ("gemma2", {**GEMMA, "attention.qk_norm": "head"}, "attention.qk_norm='head'"),
        ("gemma2", {**GEMMA, "rope.local_theta": 5.0}, "rope.local_theta=5.0"),
        ("gemma2", {**GEMMA, "attention.window": 9, "pattern": (LOCAL,)}, "rope='local'"),
        ("gemma2", {**GEMMA, "attention.scale": 0.3}, "attention.scale=0.3"),
        ("gemma2", {**GEMMA, "attention.qkv_bias": True}, UNEVEN),
        ("gemma3_text", GEMMA, "attention.qk_norm='none'"),
        (
            "gemma3_text",
            {**GEMMA, "attention.qk_norm": "head", "attention.softcap": 9.0},
            "attention.softcap=9.0",
        ),
        (
            "gemma3_text",
            {
                **GEMMA,
                "attention.qk_norm": "head",
                "attention.window": 9,
                "pattern": (LayerKind(attention="window"),),
            },
            "rope='global'",
        ),
        ("phi3", {"attention.qkv_bias": True}, "attention.qkv_bias=True"),
        ("phi3", {"rope.layout": "interleaved", "rope.fraction": 0.5}, "rope.layout='interleaved'"),
        (
            "phi3",
            {"attention.window": 9, "pattern": (LayerKind(attention="window"), LayerKind())},
            "only some layers",
        ),
        (
            "phi3",
            {
                "rope.scaling": RopeScaling(
                    kind="longrope",
                    factor=2.0,
                    short_factor=(1.0,) * 8,
                    long_factor=(2.0,) * 8,
                )
            },
            "head_dim other than embed_dim / num_heads",
        ),
        ("gpt2", {}, "norms.kind='rms'; .*'rope'; projections without bias; a gated MLP"),
        ("gpt2", {**GPT2, "attention.scale": 0.5}, "attention.scale=0.5"),
        ("gpt2", {**GPT2, "norms.placement": "parallel"}, "norms.placement='parallel'"),
        ("gpt2", {**GPT2, "num_kv_heads": 2}, "num_kv_heads=2 with num_heads=4"),
        ("gpt2", {**GPT2, "head_dim": 16}, "head_dim=16"),
        ("gpt_neox", {}, "norms.kind='rms'; an MLP that is gated or without bias"),
        ("gpt_neox", {**NEOX, "attention.out_bias": False}, UNEVEN),
        ("gpt_neox", {**NEOX, "norms.placement": "sandwich"}, "norms.placement='sandwich'"),
        ("gpt_neox", {**NEOX, "rope.layout": "interleaved"}, "rope.layout='interleaved'"),
    ],
    ids=str,
)
def test_configs_that_a_family_does_not_support_are_refused(family, changes, words):
    with pytest.raises(ValueError, match=f"does not support .*{words}"):
        BY_NAME[family].write_config(with_fields(TINY, changes), {})


def test_buffers_of_pythia_are_ignored_but_biases_are_required(tmp_path):
    """Old versions of transformers saved the causal mask and the frequencies."""
    original = CASES["gpt_neox"].build()
    original.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    buffers = {
        "bias": torch.tril(torch.ones(512, 512, dtype=torch.bool))[None, None],
        "masked_bias": torch.tensor(-1e9),
        "rotary_emb.inv_freq": torch.ones(1),
    }
    tensors = load_file(file) | {
        f"gpt_neox.layers.{i}.attention.{name}": tensor.clone()
        for i in range(4)
        for name, tensor in buffers.items()
    }
    save_file(tensors, file)
    model, tokens = load_pretrained(tmp_path), tokens_of(original)
    with torch.no_grad():
        expected = original(input_ids=torch.tensor(tokens)).logits
    assert relative_l2(model(tokens).logits, expected) <= 1e-5


def test_phi_3_writes_scaling_that_transformers_4_can_read(tmp_path):
    """Only three fields of scaling, the first under its old name."""
    CASES["phi3/longrope-beyond"].build().save_pretrained(tmp_path / "in")
    model = load_pretrained(tmp_path / "in")
    model.origin = None  # whose fields would be kept
    save_pretrained(model, tmp_path / "out", format="hf")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    factors = longrope(64, 4)["rope_parameters"]
    assert written["rope_scaling"] == {
        "type": "longrope",
        "short_factor": factors["short_factor"],
        "long_factor": factors["long_factor"],
    }
    assert written["original_max_position_embeddings"] == 64
    assert written["partial_rotary_factor"] == 0.5
