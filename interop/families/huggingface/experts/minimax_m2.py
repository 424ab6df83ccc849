"""MiniMax-M2 in the Hugging Face format: experts by corrected sigmoids, norms over all heads.

MiniMax, 2025.
"""

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, fixed, setting
from jaxllm.interop.families.common.described.rotary import full_attention, rope
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
from jaxllm.interop.families.common.llama_like import attention_rules, end_rules, norm_rules
from jaxllm.interop.rules.rule import Rule

FIXED = {"attention.qk_norm": "full", "pattern": (LayerKind(mlp="experts"),)}
ROTARY, FRACTION = "rotary_dim", "partial_rotary_factor"
THETA = 5000000.0
WIDTH = "intermediate_size"
OF_EXPERTS = {"normalize": True, "correction_bias": True}
ROPE = rope(THETA, fraction=1.0)


def read_rotary(fields: Fields) -> Json:
    """Reads RoPE, whose fraction of a head files may give as its number of elements."""
    rotated = fields.take(ROTARY, int, None)
    if rotated is not None and FRACTION not in fields.data:
        width = max(fields.take("head_dim", int, 128), 1)
        fields.data = {**fields.data, FRACTION: rotated / width}
    return ROPE.read(fields)


def write_rotary(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_rotary`."""
    rotated = int(config.head_dim * config.rope.fraction)
    return {**ROPE.write(config, base), ROTARY: rotated}


def read_own_experts(fields: Fields) -> Json:
    """Reads the experts, which are as wide as `intermediate_size` says."""
    own = {"scores": "sigmoid", **OF_EXPERTS}
    return {"experts": read_experts(fields, 256, 8, width=WIDTH, has_norm_field=False, **own)}


def write_own_experts(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_own_experts`."""
    return write_experts(config, base, number="num_local_experts", width=WIDTH, normalize=False)


def other_experts(config: DecoderConfig) -> dict[str, bool]:
    """Flags what the experts of this family do not have."""
    common, experts = unsupported_by_softmax_experts(config), config.experts
    if experts is None:
        return common
    scores = f"experts.scores={experts.scores!r}"
    return {
        **common,
        scores: experts.scores != "sigmoid",
        **{
            f"experts.{x}={getattr(experts, x)}": getattr(experts, x) != y
            for x, y in OF_EXPERTS.items()
        },
    }


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    under = "mlp" if layout.experts == "fused" else "block_sparse_moe"
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *expert_rules(config, layout, under="block_sparse_moe", gate="w1", up="w3", down="w2"),
        Rule(
            f"model.layers.{{L}}.{under}.e_score_correction_bias : E",
            "layers.{L}.mlp.correction_bias : E",
        ),
    ]


MINIMAX_M2 = described_family(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    (
        sizes(196608, kv_heads=8, head_dim=128),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        activation("hidden_act", "silu"),
        fixed(FIXED),
        Part(read_rotary, write_rotary, ROPE.supports, ROPE.unsupported),
        full_attention(),
        Part(read_own_experts, write_own_experts, ("experts",), other_experts),
    ),
    rules,
    read_layout=read_expert_layout,
)
