"""mT5 in the Hugging Face format (`model_type: mt5`): T5 v1.1 with other sizes by default."""

from collections.abc import Mapping

from jaxllm.config import EncoderDecoderConfig
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.formats.stored_tensor import StoredTensor

from .t5 import EMBEDDINGS, HEAD, read_stacks, table, write_stacks

USUAL: Json = {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it.

    Transformers 5 takes every mT5 as tied, unless the checkpoint stores a separate head.
    """
    fields.require("is_encoder_decoder", True)
    fields.ignore("tie_word_embeddings")
    return read_stacks(fields, USUAL, ties_head=HEAD not in stored, is_scaled=False), Layout()


def write_config(config: EncoderDecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    return write_stacks(config, base, "mt5", "MT5ForConditionalGeneration", scales=(1.0,))


MT5 = hf_family(
    "mt5",
    read_config,
    write_config,
    table,
    EncoderDecoderConfig,
    prefix="",
    embeddings=EMBEDDINGS,
)
