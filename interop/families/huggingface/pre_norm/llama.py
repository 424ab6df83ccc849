"""Llama in the Hugging Face format (`model_type: llama`): rotated pairs are half a head apart."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import require_full_attention
from jaxllm.interop.families.common.llama_like import (
    llama_table,
    read_attention_bias,
    read_decoder,
    write_decoder,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import refuse, unsupported_by_one_bias
from jaxllm.interop.formats.stored_tensor import StoredTensor


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    require_full_attention(fields)
    config = {
        **read_decoder(fields),
        **read_rope(fields),
        **read_attention_bias(fields),
        "mlp.bias": fields.take("mlp_bias", bool, False),
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    biases = ("attention.qkv_bias", "attention.out_bias", "mlp.bias")
    refuse(
        "model_type 'llama'",
        config,
        ("rope.theta", "rope.scaling", "head.tied", "mlp.activation", *biases),
        unsupported_by_one_bias(config),
    )
    return {
        **write_decoder(config, base, "llama", "LlamaForCausalLM"),
        **write_rope(config),
        "attention_bias": config.attention.qkv_bias,
        "mlp_bias": config.mlp.bias,
    }


LLAMA = hf_family("llama", read_config, write_config, llama_table)
