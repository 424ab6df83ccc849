"""OLMo 1 in the Hugging Face format: Llama with layer norms that have no parameters."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import (
    activation,
    fixed,
    required,
    setting,
    switch,
)
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.rules import embedding_rule
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import attention_rules, gated_mlp_rules
from jaxllm.interop.rules.rule import Rule


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        embedding_rule("model.embed_tokens"),
        *attention_rules(config),
        *gated_mlp_rules(config),
    ]


OLMO = described_family(
    "olmo",
    "OlmoForCausalLM",
    (
        sizes(2048),
        setting("tie_word_embeddings", "head.tied", bool, False),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
        activation("hidden_act", "silu"),
        fixed({"norms.kind": "layer_bare", "norms.eps": 1e-5}),
        required("clip_qkv", None),
        rope(),
        full_attention(),
    ),
    rules,
)
