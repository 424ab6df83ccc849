"""Ministral in the Hugging Face format: Mistral with a sliding window on some layers."""

from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, setting
from jaxllm.interop.families.common.described.rotary import layer_types, rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.common.llama_like import llama_rules

WINDOW = 4096


def all_alike(fields: Fields, count: int) -> list[str]:
    """Returns the types of layers that are not listed: all slide if there is a window."""
    window = fields.take_nullable("sliding_window", int, WINDOW)
    return ["full_attention" if window is None else "sliding_attention"] * count


MINISTRAL = described_family(
    "ministral",
    "MinistralForCausalLM",
    (
        sizes(131072, kv_heads=8),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        activation("hidden_act", "silu"),
        rope(),
        layer_types(all_alike, WINDOW),
    ),
    llama_rules,
)
