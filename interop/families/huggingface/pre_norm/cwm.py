"""CWM in the Hugging Face format: Llama with sliding windows on three of four layers."""

from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, setting
from jaxllm.interop.families.common.described.rotary import layer_types, rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.common.llama_like import llama_rules


def every_fourth_is_full(fields: Fields, count: int) -> list[str]:
    """Returns the types of layers that are not listed: the first of four sees all tokens."""
    return ["sliding_attention" if i % 4 else "full_attention" for i in range(count)]


CWM = described_family(
    "cwm",
    "CwmForCausalLM",
    (
        sizes(131072, kv_heads=8, head_dim=128),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        setting("mlp_bias", "mlp.bias", bool, False),
        activation("hidden_act", "silu"),
        rope(1000000.0),
        layer_types(every_fourth_is_full, 8192),
    ),
    llama_rules,
)
