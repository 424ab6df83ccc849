"""Qwen2 in the Hugging Face format: Llama with biases on queries, keys and values only."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_qwen_windows,
    unsupported_layers,
    write_qwen_windows,
)
from jaxllm.interop.families.common.llama_like import llama_table, read_decoder, write_decoder
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    config = {
        **read_decoder(fields, num_key_value_heads=32, max_position_embeddings=32768),
        **read_rope(fields),
        **read_qwen_windows(fields),
        "attention.qkv_bias": True,
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    supported = (
        "rope.theta",
        "rope.scaling",
        "head.tied",
        "mlp.activation",
        "attention.qkv_bias",
        "attention.window",
    )
    refuse(
        "model_type 'qwen2'",
        config,
        (*supported, "pattern"),
        {
            "attention.qkv_bias=False": not config.attention.qkv_bias,
            **unsupported_layers(
                config, attention=("full", "window"), rope=("global",), mlp=("dense",)
            ),
        },
    )
    return {
        **write_decoder(config, base, "qwen2", "Qwen2ForCausalLM"),
        **write_rope(config),
        **write_qwen_windows(config),
    }


QWEN2 = hf_family("qwen2", read_config, write_config, llama_table)
