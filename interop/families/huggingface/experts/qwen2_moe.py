"""Qwen2 MoE in the Hugging Face format: experts beside a shared one, whose output has a gate."""

from collections.abc import Sequence
from typing import Any

from jaxllm.config import DecoderConfig, ExpertsConfig, LayerKind
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, setting
from jaxllm.interop.families.common.described.rotary import rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.experts import (
    expert_rules,
    read_expert_layout,
    read_experts,
    unsupported_by_softmax_experts,
    write_experts,
)
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    ATTENTION,
    read_layer_types,
    shortest_pattern,
    unsupported_layers,
    write_layer_types,
)
from jaxllm.interop.families.common.llama_like import (
    attention_rules,
    end_rules,
    gated_mlp_rules,
    layers_with_mlp,
    norm_rules,
)
from jaxllm.interop.rules.rule import Rule

from .qwen3_moe import read_sparse_layers

SHARED = "shared_expert"
SHARED_WIDTH = "shared_expert_intermediate_size"


def read_layers(fields: Fields) -> Json:
    """Reads the layers: which have experts, and which a window."""
    sparse, window, types = read_sparse_layers(fields), *_read_windows(fields)
    experts = read_gated_experts(fields, 60, 4, mlp_dim=1408, shared=5632)
    kinds = [
        LayerKind(
            attention=ATTENTION[name],
            mlp="experts" if is_sparse and experts is not None else "dense",
        )
        for name, is_sparse in zip(types, sparse, strict=True)
    ]
    return {
        "attention.window": window if "sliding_attention" in types else None,
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
        "experts": experts if any(sparse) else None,
    }


def _read_windows(fields: Fields) -> tuple[int | None, Sequence[str]]:
    """Returns the window and the types of layers: every other one slides, up to a certain layer."""
    count = fields.take("num_hidden_layers", int)
    is_used = fields.take("use_sliding_window", bool, False)
    window = fields.take_nullable("sliding_window", int, 4096)
    last = fields.take("max_window_layers", int, 28)
    slides = [is_used and i % 2 == 0 and i < last for i in range(count)]
    types = read_layer_types(
        fields, ["sliding_attention" if one else "full_attention" for one in slides]
    )
    if "sliding_attention" in types and (window is None or not is_used):
        fields.problems.append("layer_types has sliding_attention, but use_sliding_window is false")
    return window, types


def read_gated_experts(
    fields: Fields, *numbers: int, shared: int, **others: Any
) -> ExpertsConfig | None:
    """Reads experts beside a shared one with a gate, as `read_experts`.

    `shared` is the default of the shared expert's width.
    """
    width = fields.take(SHARED_WIDTH, int, shared)
    return read_experts(fields, *numbers, shared_mlp_dim=width, shared_gate=True, **others)


def write_gated_experts(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_gated_experts` and `read_sparse_layers`."""
    assert config.experts is not None, "refused otherwise"
    return {
        **write_experts(config, base),
        SHARED_WIDTH: config.experts.shared_mlp_dim,
        "decoder_sparse_step": 1,
        "mlp_only_layers": layers_with_mlp(config, "dense"),
    }


def write_layers(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_layers`."""
    has_window = config.attention.window is not None
    return {
        **write_gated_experts(config, base),
        "layer_types": write_layer_types(config),
        "use_sliding_window": has_window,
        "sliding_window": config.attention.window,
        "max_window_layers": config.num_layers if has_window else 0,
    }


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head; O is the one output of the gate."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *mlp_rules(config, layout),
    ]


def mlp_rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules of MLPs, and of experts beside a shared one with a gate."""
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    sparse = layers_with_mlp(config, "experts")
    return [
        *gated_mlp_rules(config, layers_with_mlp(config, "dense")),
        *expert_rules(config, layout, under="mlp", **names),
        *gated_mlp_rules(config, sparse, theirs=f"mlp.{SHARED}", ours="mlp.shared", width="S"),
        Rule(
            f"model.layers.{{L}}.mlp.{SHARED}_gate.weight : O D",
            "layers.{L}.mlp.shared_gate.kernel : D O",
            layers=sparse,
        ),
    ]


QWEN2_MOE = described_family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    (
        sizes(32768, kv_heads=16),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        setting("qkv_bias", "attention.qkv_bias", bool, True),
        activation("hidden_act", "silu"),
        rope(),
        Part(
            read_layers,
            write_layers,
            ("attention.window", "pattern", "experts"),
            lambda config: {
                **unsupported_layers(config, attention=("full", "window"), rope=("global",)),
                **unsupported_by_softmax_experts(config, is_shared=True),
            },
        ),
    ),
    rules,
    read_layout=read_expert_layout,
    axes=lambda config: {"O": 1},
)
