"""Gemma 3 for text in the Hugging Face format: Gemma 2 with a norm on queries and keys.

The sliding-window layers, five of six, have their own RoPE base.
"""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope_by_layer, write_rope
from jaxllm.interop.families.common.unsupported import unsupported_values
from jaxllm.interop.formats.stored_tensor import StoredTensor

from .gemma import read_gemma, refuse_gemma, table, write_gemma

KINDS = {
    "sliding_attention": LayerKind(attention="window", rope="local"),
    "full_attention": LayerKind(),
}


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    fields.require("attn_logit_softcapping", None)  # transformers reads it but applies no cap
    period = max(fields.take("sliding_window_pattern", int, 6), 1)
    config = {
        **read_gemma(
            fields, lambda i: (i + 1) % period == 0, KINDS, max_position_embeddings=131072
        ),
        **read_rope_by_layer(fields, default_theta=1000000.0, default_local_theta=10000.0),
        "attention.qk_norm": "head",
        "head.softcap": fields.take_nullable("final_logit_softcapping", float, None),
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    refuse_gemma(
        "model_type 'gemma3_text'",
        config,
        ("attention.qk_norm", "rope.local_theta"),
        {
            **unsupported_values(config, {"attention.qk_norm": "head"}),
            f"attention.softcap={config.attention.softcap}": config.attention.softcap is not None,
            "RoPE scaling with truncate=False": (
                config.rope.scaling is not None and not config.rope.scaling.truncate
            ),
        },
        KINDS,
    )
    return {
        **write_gemma(config, base, "gemma3_text", "Gemma3ForCausalLM"),
        **write_rope(config),
        "rope_local_base_freq": config.rope.local_theta,
    }


GEMMA3_TEXT = hf_family("gemma3_text", read_config, write_config, table)
