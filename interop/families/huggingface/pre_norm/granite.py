"""Granite in the Hugging Face format: Llama with factors of embeddings, residuals and logits."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, setting, switch
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import llama_rules


def read_logits_scale(fields: Fields) -> Json:
    """Reads the divisor of the logits."""
    divisor = fields.take("logits_scaling", float, 1.0)
    if not divisor > 0:
        fields.problems.append(f"logits_scaling={divisor} is not positive")
        divisor = 1.0
    return {"head.scale": 1 / divisor}


def write_logits_scale(config: DecoderConfig, base: Json) -> Json:
    """Writes the divisor of the logits."""
    return {"logits_scaling": 1 / config.head.scale}


def inexact_scale(config: DecoderConfig) -> dict[str, bool]:
    """Flags a factor of the logits that is not the inverse of a number in the file."""
    scale = config.head.scale
    return {f"head.scale={scale}, whose inverse is rounded": 1 / (1 / scale) != scale}


def write_attention_scale(config: DecoderConfig, base: Json) -> Json:
    """Writes the factor of the scores."""
    scale = config.attention.scale
    return {"attention_multiplier": config.head_dim**-0.5 if scale is None else scale}


GRANITE = described_family(
    "granite",
    "GraniteForCausalLM",
    (
        sizes(2048),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        setting("embedding_multiplier", "embed_scale", float, 1.0),
        setting("residual_multiplier", "residual_scale", float, 1.0),
        Part(
            lambda fields: {"attention.scale": fields.take("attention_multiplier", float, 1.0)},
            write_attention_scale,
            ("attention.scale",),
        ),
        Part(read_logits_scale, write_logits_scale, ("head.scale",), inexact_scale),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), False),
        setting("mlp_bias", "mlp.bias", bool, False),
        activation("hidden_act", "silu"),
        rope(),
        full_attention(),
    ),
    llama_rules,
    unlike={"model.embed_tokens": "embeddings are scaled after it"},
)
