"""Cohere (Command R) in the Hugging Face format: one LayerNorm without bias for both sublayers."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import (
    activation,
    choice,
    fixed,
    setting,
    switch,
)
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import (
    attention_rules,
    end_rules,
    gated_mlp_rules,
    norm_rules,
)
from jaxllm.interop.rules.rule import Rule

# Of Cohere 1 and 2.
COMMON = (
    sizes(8192),
    setting("layer_norm_eps", "norms.eps", float, 1e-5),
    setting("tie_word_embeddings", "head.tied", bool, True),
    setting("logit_scale", "head.scale", float, 0.0625),
    switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
    activation("hidden_act", "silu"),
    fixed({"norms.kind": "layer_unbiased", "norms.placement": "parallel_shared"}),
)


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm"),
        *attention_rules(config, stored_pairs="h r"),
        *gated_mlp_rules(config),
    ]


COHERE = described_family(
    "cohere",
    "CohereForCausalLM",
    (
        *COMMON,
        choice("use_qk_norm", "attention.qk_norm", {False: "none", True: "each_head"}, False),
        rope(500000.0),
        full_attention(),
    ),
    rules,
)
