"""Seed-OSS in the Hugging Face format: Llama with biases of queries, keys and values."""

from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, setting
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.llama_like import llama_rules

SEED_OSS = described_family(
    "seed_oss",
    "SeedOssForCausalLM",
    (
        sizes(524288, kv_heads=8, head_dim=128),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        setting("attention_bias", "attention.qkv_bias", bool, True),
        setting("attention_out_bias", "attention.out_bias", bool, False),
        setting("mlp_bias", "mlp.bias", bool, False),
        activation("hidden_act", "silu"),
        rope(),
        full_attention(),
    ),
    llama_rules,
)
