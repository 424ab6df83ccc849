"""Gemma 2 in the Hugging Face format: sandwich norms, sliding windows on every other layer."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.formats.stored_tensor import StoredTensor

from .gemma import read_gemma, refuse_gemma, table, write_gemma


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    config = {
        **read_gemma(fields, lambda i: i % 2 == 1, max_position_embeddings=8192),
        **read_rope(fields),
        "attention.softcap": fields.take_nullable("attn_logit_softcapping", float, 50.0),
        "head.softcap": fields.take_nullable("final_logit_softcapping", float, 30.0),
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    refuse_gemma("model_type 'gemma2'", config, (), {})
    return {**write_gemma(config, base, "gemma2", "Gemma2ForCausalLM"), **write_rope(config)}


GEMMA2 = hf_family("gemma2", read_config, write_config, table)
