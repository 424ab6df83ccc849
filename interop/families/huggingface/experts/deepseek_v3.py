"""DeepSeek-V3 in the Hugging Face format: latent attention, and experts in groups.

DeepSeek-AI, 2024, "DeepSeek-V3 Technical Report". Layers that predict further tokens are carried
along as they are.
"""

from collections.abc import Collection
from typing import Any

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.latent import (
    latent_axes,
    latent_rope,
    latent_rules,
    latent_sizes,
    predicting_layers,
)
from jaxllm.interop.families.common.described.part import Part, activation, setting, switch
from jaxllm.interop.families.common.described.sparse import Sparse, sparse_rules
from jaxllm.interop.families.common.experts import read_expert_layout
from jaxllm.interop.families.common.family import Family, Layout
from jaxllm.interop.families.common.llama_like import end_rules, norm_rules
from jaxllm.interop.rules.rule import Rule

SPARSE = Sparse(
    fixed={"scores": "sigmoid", "correction_bias": True, "router_in_float32": True},
    num_experts=256,
    top_k=8,
    mlp_dim=2048,
    num_shared=1,
    weight_scale=2.5,
    num_dense=3,
    normalize=True,
    groups=(8, 4),
)


def read_layout(stored: Collection[str]) -> Layout:
    """Detects how experts are stored, and which layers predict further tokens."""
    experts = read_expert_layout(stored).experts
    return Layout(experts=experts, names=[*predicting_layers(stored)])


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *latent_rules(config),
        *sparse_rules(config, layout),
    ]


def carried(layout: Layout) -> dict[str, str]:
    """Returns the patterns of tensors that are carried along."""
    return dict.fromkeys(layout.names, "a layer that predicts further tokens")


def like_deepseek_v3(model_type: str, *parts: Part, **others: Any) -> Family:
    """Returns the family of a `model_type` with DeepSeek-V3's fields and names.

    Args:
        model_type: see `Family`.
        parts: of its config beside those of DeepSeek-V3.
        others: see `described_family`.
    """
    return described_family(
        model_type,
        "DeepseekV3ForCausalLM",
        (
            latent_sizes(4096),
            setting("rms_norm_eps", "norms.eps", float, 1e-6),
            setting("tie_word_embeddings", "head.tied", bool, False),
            switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
            activation("hidden_act", "silu"),
            latent_rope(),
            SPARSE.part,
            *parts,
        ),
        rules,
        read_layout=read_layout,
        axes=latent_axes,
        carried=carried,
        unlike={"*.self_attn@query": "the rotated pairs are in another order"},
        **others,
    )


DEEPSEEK_V3 = like_deepseek_v3("deepseek_v3")
