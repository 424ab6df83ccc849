"""Reading and writing the layers, chunks, experts and widths of Llama 4's arguments."""

import dataclasses
import json

import pytest
from tiny import TINY

from jaxllm.config import (
    DecoderConfig,
    LayerKind,
    TemperatureConfig,
    VisionConfig,
    make_config,
    with_fields,
)
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.huggingface.multimodal.llama4_text import llama4_experts
from jaxllm.interop.families.meta.llama4_args import (
    FIELDS,
    is_llama4,
    read_llama4,
    unsupported_by_llama4,
    write_llama4,
)
from jaxllm.interop.reference.llm.model import LLM, ModelArgs

ARGS = {"dim": 48, "n_layers": 6, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 90, "multiple_of": 8}
MOE = {"num_experts": 5, "top_k": 2, "interleave_moe_layer_step": 2}
# Chunks but on every third layer, experts on every other.
LLAMA4 = {
    **ARGS,
    **{"attention_chunk_size": 25, "nope_layer_interval": 3, "use_qk_norm": True},
    **{"attn_temperature_tuning": True, "floor_scale": 20.0, "attn_scale": 0.2, "moe_args": MOE},
}
CHUNKED = LayerKind(attention="chunk")


def read(data: dict) -> DecoderConfig:
    """A config of these arguments, with the tests' own where Llama 3's are said."""
    fields = Fields(json.loads(json.dumps(data)))
    found = read_llama4(fields)
    assert not fields.problems
    ours = {name: getattr(TINY, name) for name in ("head_dim", "mlp_dim")}
    names = {"dim": "embed_dim", "n_layers": "num_layers", "n_heads": "num_heads"}
    sizes = {ours: data[theirs] for theirs, ours in names.items()}
    kv = {"num_kv_heads": data["n_kv_heads"], "vocab_size": data["vocab_size"]}
    return make_config({**ours, **sizes, **kv, **found})


def test_arguments_of_llama_3_leave_a_llama_3():
    config = read(ARGS)
    assert config.pattern == (LayerKind(),)
    assert not is_llama4(config)
    assert FIELDS.isdisjoint(ARGS)


@pytest.mark.parametrize("name", ["use_qk_norm", "attn_temperature_tuning", "moe_args"])
def test_any_field_of_its_own_makes_a_llama_4(name):
    assert name in FIELDS
    assert is_llama4(read({**ARGS, name: LLAMA4[name]}))


def test_layers_are_what_their_numbers_say():
    config = read(LLAMA4)
    assert [kind.rope == "none" for kind in config.kinds] == [False, False, True] * 2
    assert [kind.attention for kind in config.kinds] == ["chunk", "chunk", "full"] * 2
    assert [kind.mlp for kind in config.kinds] == ["dense", "experts"] * 3
    assert config.attention.chunk == 25
    assert config.attention.qk_norm == "after_rope"
    assert config.attention.temperature == TemperatureConfig(scale=0.2, floor_scale=20.0)
    with_rope = read({**LLAMA4, "nope_layer_interval": None, "moe_args": None})
    assert with_rope.pattern == (CHUNKED,)
    without = read({**LLAMA4, "nope_layer_interval": 1, "moe_args": None})
    assert without.attention.chunk is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_args": {**MOE, "auto_scale_F": False}},
        {"moe_args": {**MOE, "capacity_factor": 2.0}},
        {"ffn_exp": 2.5},
        {"ffn_dim_multiplier": 1.7, "multiple_of": 4},
    ],
    ids=str,
)
def test_experts_are_as_wide_as_in_the_reference(changes):
    data = {**LLAMA4, **changes}
    moe = LLM(ModelArgs.from_json(data)).layers[1].feed_forward
    experts = read(data).experts
    assert (experts.num_experts, experts.top_k) == (5, 2)
    assert experts.mlp_dim == moe.experts.w2.shape[1]
    assert experts.shared_mlp_dim == moe.shared_expert.w1.out_features
    assert (experts.scores, experts.scale) == ("sigmoid", "input")


@pytest.mark.parametrize("given", [{}, LLAMA4])
@pytest.mark.parametrize("mlp_dim", [128, 111])
@pytest.mark.parametrize("expert_dim", [64, 39, 150])
def test_what_is_written_reads_the_same(expert_dim, mlp_dim, given):
    """Any width, with the fields that the config came with and without them."""
    experts = llama4_experts(num_experts=5, top_k=2, mlp_dim=expert_dim)
    config = dataclasses.replace(read(LLAMA4), experts=experts, mlp_dim=mlp_dim)
    written = {**ARGS, **write_llama4(config, given)}
    again = dataclasses.replace(read(written), mlp_dim=mlp_dim)
    assert again == config
    assert (written["nope_layer_interval"], written["attention_chunk_size"]) == (3, 25)
    dense = LLM(ModelArgs.from_json(written)).layers[0].feed_forward
    assert dense.w_gate.out_features == mlp_dim


def test_an_interval_that_it_came_with_is_kept():
    """Beyond the last layer, any interval says that there is none."""
    config = read({**LLAMA4, "nope_layer_interval": 9})
    assert write_llama4(config, {"nope_layer_interval": 9})["nope_layer_interval"] == 9
    assert write_llama4(config, {})["nope_layer_interval"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_args": {"rank": 8}}, "lora_args"),
        ({"nope_layer_interval": 0}, "nope_layer_interval=0"),
        ({"floor_scale": 0.0}, "floor_scale=0.0"),
        ({"moe_args": {**MOE, "top_k": 9}}, "top_k=9"),
        ({"moe_args": {**MOE, "use_shared_expert": False}}, "use_shared_expert=False"),
        ({"moe_args": {"top_k": 1}}, "num_experts is missing"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_named(changes, words):
    fields = Fields({**LLAMA4, **changes})
    read_llama4(fields)
    assert any(words in problem for problem in fields.problems)


NOPE, EXPERTS = LayerKind(rope="none"), LayerKind(mlp="experts")
TINY_EXPERTS = llama4_experts(num_experts=2, top_k=1, mlp_dim=8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention.qk_norm": "head"}, "attention.qk_norm='head'"),
        ({"pattern": (LayerKind(rope="local"),)}, "rope='local'"),
        (
            {"pattern": (LayerKind(attention="window"),), "attention.window": 9},
            "attention='window'",
        ),
        ({"pattern": (NOPE, LayerKind(), LayerKind())}, "without RoPE"),
        ({"pattern": (EXPERTS, LayerKind(), LayerKind()), "experts": TINY_EXPERTS}, "experts"),
        ({"pattern": (CHUNKED, LayerKind()), "attention.chunk": 9}, "chunks on layers other"),
        (
            {
                "vision": VisionConfig(
                    **{"image_size": 8, "patch_size": 2, "embed_dim": 16, "num_layers": 1},
                    **{"num_heads": 2, "mlp_dim": 24, "output_dim": 8, "norm_eps": 1e-6},
                )
            },
            "norm_eps=1e-06",
        ),
    ],
    ids=str,
)
def test_what_the_arguments_cannot_say_is_named(changes, words):
    config = with_fields(TINY, changes)
    named = [what for what, is_so in unsupported_by_llama4(config).items() if is_so]
    assert any(words in text for text in named)
    assert not any(unsupported_by_llama4(read(LLAMA4)).values())
