"""Gemma 1 in the Hugging Face format: Llama with scaled embeddings and norms by one plus scale."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, fixed, required, setting, switch
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import (
    llama_rules,
    read_activation,
    write_activation,
)


def read_gelu(fields: Fields) -> Json:
    """Reads the activation; the exact GELU of released files stands for its approximation.

    Before transformers 5, `hidden_activation` came first; version 5 does not read it.
    """
    given = read_activation(fields, "hidden_act", "gelu_pytorch_tanh")
    fields.require("hidden_activation", None, "gelu_pytorch_tanh", fields.data.get("hidden_act"))
    return {"mlp.activation": "gelu_tanh" if given == "gelu" else given}


def write_gelu(config: DecoderConfig, base: Json) -> Json:
    """Writes the activation."""
    own = config.mlp.activation == "gelu_tanh" and base.get("hidden_act") == "gelu"
    return {} if own else write_activation(config, "hidden_act", base)


def exact_gelu(config: DecoderConfig) -> dict[str, bool]:
    """Flags the exact GELU, which files cannot name."""
    return {"mlp.activation='gelu'": config.mlp.activation == "gelu"}


def read_embed_scale(fields: Fields) -> Json:
    """The factor of embeddings follows from the width."""
    return {"embed_scale": fields.take("hidden_size", int) ** 0.5}


def other_embed_scale(config: DecoderConfig) -> dict[str, bool]:
    """Flags another factor of embeddings."""
    scale = config.embed_dim**0.5
    return {f"embed_scale={config.embed_scale}, only {scale}": config.embed_scale != scale}


GEMMA = described_family(
    "gemma",
    "GemmaForCausalLM",
    (
        sizes(8192, kv_heads=16, head_dim=256),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, True),
        fixed({"norms.kind": "rms_plus_one"}),
        Part(read_embed_scale, supports=("embed_scale",), unsupported=other_embed_scale),
        Part(read_gelu, write_gelu, ("mlp.activation",), exact_gelu),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), False),
        required("use_bidirectional_attention", None, False),
        rope(),
        full_attention(),
    ),
    llama_rules,
)
