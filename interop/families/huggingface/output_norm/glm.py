"""GLM in the Hugging Face format: half of each head is rotated, in adjacent pairs; fused MLP."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, setting
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.rules import (
    attention_rules,
    fused_gated_mlp_rules,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import end_rules, norm_rules
from jaxllm.interop.rules.rule import Rule

PARTS = (
    sizes(131072, kv_heads=2, head_dim=128),
    setting("rms_norm_eps", "norms.eps", float, 1.5625e-07),
    setting("tie_word_embeddings", "head.tied", bool, False),
    setting("attention_bias", "attention.qkv_bias", bool, True),
    activation("hidden_act", "silu"),
    rope(fraction=0.5, layout="interleaved"),
    full_attention(),
)
NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def rules(config: DecoderConfig, layout: Layout, norms: Mapping[str, str] = NORMS) -> list[Rule]:
    """Returns the rules for every tensor but the head; `norms` are the names of a layer's."""
    return [
        *end_rules(),
        *norm_rules(**norms),
        *attention_rules(config, "model.layers.{L}.self_attn"),
        *fused_gated_mlp_rules("model.layers.{L}.mlp"),
    ]


GLM = described_family("glm", "GlmForCausalLM", PARTS, rules)
