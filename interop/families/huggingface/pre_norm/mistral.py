"""Mistral in the Hugging Face format: Llama with a sliding window on all layers or on none."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_uniform_window,
    unsupported_by_one_window,
    unsupported_layers,
)
from jaxllm.interop.families.common.llama_like import llama_table, read_decoder, write_decoder
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    config = {
        **read_decoder(fields, num_key_value_heads=8, max_position_embeddings=131072),
        **read_rope(fields),
        **read_uniform_window(fields, 4096),
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    refuse(
        "model_type 'mistral'",
        config,
        (
            *("rope.theta", "rope.scaling", "head.tied", "mlp.activation"),
            *("attention.window", "pattern"),
        ),
        {
            **unsupported_layers(
                config, attention=("full", "window"), rope=("global",), mlp=("dense",)
            ),
            **unsupported_by_one_window(config),
        },
    )
    return {
        **write_decoder(config, base, "mistral", "MistralForCausalLM"),
        **write_rope(config),
        "sliding_window": config.attention.window,
    }


MISTRAL = hf_family("mistral", read_config, write_config, llama_table)
