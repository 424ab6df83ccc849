"""Qwen3 in the Hugging Face format: Llama with a norm on each head's queries and keys."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_qwen_windows,
    unsupported_layers,
    write_qwen_windows,
)
from jaxllm.interop.families.common.llama_like import (
    llama_table,
    read_attention_bias,
    read_decoder,
    write_decoder,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import (
    refuse,
    unsupported_by_one_bias,
    unsupported_values,
)
from jaxllm.interop.formats.stored_tensor import StoredTensor


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    config = {
        **read_decoder(fields, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768),
        **read_rope(fields),
        **read_qwen_windows(fields),
        **read_attention_bias(fields),
        "attention.qk_norm": "head",
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    supported = (
        *("rope.theta", "rope.scaling", "head.tied", "attention.qkv_bias", "attention.out_bias"),
        *("attention.qk_norm", "mlp.activation"),
    )
    refuse(
        "model_type 'qwen3'",
        config,
        (*supported, "attention.window", "pattern"),
        {
            **unsupported_values(config, {"attention.qk_norm": "head"}),
            **unsupported_by_one_bias(config),
            **unsupported_layers(
                config, attention=("full", "window"), rope=("global",), mlp=("dense",)
            ),
        },
    )
    return {
        **write_decoder(config, base, "qwen3", "Qwen3ForCausalLM"),
        **write_rope(config),
        **write_qwen_windows(config),
        "attention_bias": config.attention.qkv_bias,
    }


QWEN3 = hf_family("qwen3", read_config, write_config, llama_table)
