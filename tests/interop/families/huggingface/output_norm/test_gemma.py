"""Code shared by Gemma 2 and 3: windows, scales, norms around each sublayer, tensors."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hf_cases import CASES, tokens_of
from stored_shapes import shapes_in_model, shapes_in_rules
from tiny import TINY

from jaxllm.config import DecoderConfig, LayerKind, make_config, with_fields
from jaxllm.interop import load_pretrained
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.huggingface.output_norm.gemma import (
    read_gemma,
    refuse_gemma,
    table,
    write_gemma,
)

BARE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 56,
}
WINDOW = LayerKind(attention="window")
GEMMA = {
    "norms.kind": "rms_plus_one",
    "norms.placement": "sandwich",
    "embed_scale": TINY.embed_dim**0.5,
    "mlp.activation": "gelu_tanh",
}


def every_other(layer: int) -> bool:
    return layer % 2 == 1


def read(**fields: object) -> DecoderConfig:
    given = Fields({**BARE, **fields})
    values = read_gemma(given, every_other)
    assert given.finish() == []
    return make_config(values)


def test_a_config_that_says_little_is_gemma_2_s():
    config, theirs = read(), transformers.Gemma2Config(**BARE)
    assert (config.num_kv_heads, config.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)
    assert config.attention.window == theirs.sliding_window
    assert config.attention.scale == theirs.query_pre_attn_scalar**-0.5
    assert config.head.tied == theirs.tie_word_embeddings
    assert (config.mlp.activation, theirs.hidden_activation) == ("gelu_tanh", "gelu_pytorch_tanh")
    assert config.embed_scale == 32**0.5
    assert config.pattern == (WINDOW, LayerKind())
    slides = ["sliding_attention" if k == WINDOW else "full_attention" for k in config.kinds]
    assert slides == theirs.layer_types


def test_layers_slide_as_they_are_listed():
    types = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    config = read(layer_types=types, sliding_window=9)
    assert [kind == WINDOW for kind in config.kinds] == [False, False, True, False]
    assert config.attention.window == 9
    assert read(layer_types=["full_attention"] * 4, sliding_window=9).attention.window is None


def test_a_window_of_null_leaves_nothing_to_slide():
    fields = Fields({**BARE, "sliding_window": None})
    read_gemma(fields, every_other)
    [problem] = fields.problems
    assert "sliding_window" in problem


def test_kinds_of_layers_go_by_the_names_that_a_family_gives():
    local = LayerKind(attention="window", rope="local")
    kinds = {"sliding_attention": local, "full_attention": LayerKind()}
    found = read_gemma(Fields(dict(BARE)), every_other, kinds)
    assert found["pattern"] == (local, LayerKind())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention_bias": True, "hidden_activation": "gelu_fast"},
        {"query_pre_attn_scalar": 144, "sliding_window": 7, "tie_word_embeddings": False},
        {"layer_types": ["full_attention"] * 4, "head_dim": 16, "num_key_value_heads": 2},
    ],
    ids=str,
)
def test_what_is_written_reads_the_same(fields):
    config = read(**fields)
    refuse_gemma("gemma", config, (), {})
    for base in ({}, fields):
        written = json.loads(json.dumps(write_gemma(config, base, "gemma2", "Gemma2ForCausalLM")))
        fields_again = Fields(written)
        assert make_config(read_gemma(fields_again, every_other)) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norms.kind": "rms"}, r"norms\.kind='rms'"),
        ({"norms.placement": "pre"}, r"norms\.placement='pre'"),
        ({"embed_scale": 2.0}, r"embed_scale=2\.0"),
        ({"attention.scale": 0.3}, r"attention\.scale=0\.3"),
        ({"attention.out_bias": True}, r"attention\.qkv_bias without attention\.out_bias"),
        ({"attention.chunk": 9, "pattern": (LayerKind(attention="chunk"),)}, "attention='chunk'"),
        ({"positions.kind": "none"}, r"positions\.kind='none'"),
    ],
    ids=str,
)
def test_what_no_gemma_can_say_is_refused(changes, words):
    config = with_fields(TINY, GEMMA)
    refuse_gemma("gemma", config, (), {})
    with pytest.raises(ValueError, match=words):
        refuse_gemma("gemma", with_fields(config, changes), (), {})


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_a_gemma(tied):
    theirs = transformers.Gemma2Config(
        **BARE, num_key_value_heads=2, head_dim=16, attention_bias=True, tie_word_embeddings=tied
    )
    expected = shapes_in_model(lambda: transformers.Gemma2ForCausalLM(theirs))
    config = read(num_key_value_heads=2, head_dim=16, attention_bias=True, tie_word_embeddings=tied)
    found = table(config, Layout())
    stored = shapes_in_rules(found.rules, found.sizes)
    assert stored == {name: expected[name] for name in expected.keys() - found.tied.keys()}


def test_gemma_writes_a_whole_number_for_the_scale_of_scores():
    def write(config: DecoderConfig) -> int:
        return write_gemma(config, {}, "gemma2", "Gemma2ForCausalLM")["query_pre_attn_scalar"]

    for scalar in (1, 144, 168, 224, 256):
        config = with_fields(TINY, {**GEMMA, "attention.scale": scalar**-0.5})
        assert write(config) == scalar
    config = with_fields(TINY, GEMMA)
    assert write(config) == TINY.head_dim


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gemma_scales_embeddings_by_a_rounded_number(dtype, tmp_path):
    """The root of D is rounded to the weights' dtype, and then the product is."""
    original = CASES["gemma2"].build().to(getattr(torch, dtype))
    original.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    tokens = tokens_of(original)
    with torch.no_grad():
        expected = original.model.embed_tokens(torch.tensor(tokens)).float().numpy()
    found = model.embed(tokens)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(jnp.float32), expected)


def test_the_root_of_any_width_is_rounded_as_in_pytorch():
    for dtype in ("bfloat16", "float16"):
        roots = [width**0.5 for width in range(1, 9000)]
        theirs = torch.tensor(roots).to(getattr(torch, dtype)).float().numpy()
        ours = np.array([jnp.dtype(dtype).type(root) for root in roots]).astype(np.float32)
        np.testing.assert_array_equal(ours, theirs)
