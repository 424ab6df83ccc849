"""ERNIE 4.5 in the Hugging Face format: Llama whose rotated pairs are adjacent."""

from functools import partial

from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, setting, switch
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.llama_like import llama_rules

BIASES = ("attention.qkv_bias", "attention.out_bias", "mlp.bias")

ERNIE4_5 = described_family(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    (
        sizes(131072, kv_heads=2, head_dim=128),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, True),
        switch("use_bias", BIASES, False),
        activation("hidden_act", "silu"),
        rope(500000.0),
        full_attention(),
    ),
    partial(llama_rules, stored_pairs="h r"),
)
