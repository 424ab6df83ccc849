"""Qwen3-Next in the Hugging Face format: gated DeltaNet, gated attention and a shared expert.

Qwen team, 2025. Layers that predict further tokens are carried along as they are.
"""

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.described.delta import (
    delta_axes,
    delta_rules,
    fused_inputs,
    gated_attention_rules,
    gated_layers,
    read_attentions,
    unsupported_kinds,
    write_attentions,
)
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, setting, switch
from jaxllm.interop.families.common.described.rotary import rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.experts import (
    read_expert_layout,
    unsupported_by_softmax_experts,
)
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import shortest_pattern
from jaxllm.interop.families.common.llama_like import end_rules, norm_rules
from jaxllm.interop.families.huggingface.experts.qwen2_moe import (
    mlp_rules,
    read_gated_experts,
    write_gated_experts,
)
from jaxllm.interop.families.huggingface.experts.qwen3_moe import read_sparse_layers
from jaxllm.interop.rules.rule import Rule

PREDICTING = {"mtp.*": "layers that predict further tokens"}


def read_layers(fields: Fields) -> Json:
    """Reads which layers have attention, and which have experts."""
    attentions, delta = read_attentions(fields)
    sparse = read_sparse_layers(fields)
    experts = read_gated_experts(fields, 512, 10, mlp_dim=512, shared=512, normalize=True)
    kinds = [
        LayerKind(attention=attention, mlp="experts" if is_sparse and experts else "dense")
        for attention, is_sparse in zip(attentions, sparse, strict=True)
        if delta is not None or attention == "full"  # otherwise there is a problem
    ]
    return {
        "attention.delta": delta,
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
        "experts": experts if any(kind.mlp == "experts" for kind in kinds) else None,
    }


def write_layers(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_layers`."""
    return {**write_attentions(config, base), **write_gated_experts(config, base)}


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *gated_attention_rules(config),
        *delta_rules(config, fused_inputs()),
        *mlp_rules(config, layout),
    ]


QWEN3_NEXT = described_family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    (
        sizes(32768, kv_heads=2, head_dim=256),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
        activation("hidden_act", "silu"),
        gated_layers(),
        rope(fraction=0.25),
        Part(
            read_layers,
            write_layers,
            ("attention.delta", "pattern", "experts"),
            lambda config: {
                **unsupported_kinds(config),
                **unsupported_by_softmax_experts(config, is_shared=True),
            },
        ),
    ),
    rules,
    read_layout=read_expert_layout,
    axes=delta_axes,
    carried=lambda layout: PREDICTING,
)
