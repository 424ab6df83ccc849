"""Qwen3 as Hugging Face writes it: Llama with a norm on each head's queries and keys."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.tensors import StoredTensor

from .family import Family, Fields, Json, Layout, Table, decoder_sizes, refuse
from .hugging_face import (
    IGNORED_TENSORS,
    attention_rules,
    gated_mlp_rules,
    norm_rules,
    outer_rules,
    read_decoder,
    read_rope,
    tied_head,
    write_decoder,
    write_rope,
)
from .layer_types import read_qwen_windows, write_qwen_windows


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """The config of a `config.json`, in the spelling of transformers 4 or 5."""
    fields.require("hidden_act", "silu")
    bias = fields.take("attention_bias", bool, False)
    config = {
        **read_decoder(fields, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768),
        **read_rope(fields),
        **read_qwen_windows(fields),
        "qkv_bias": bias,
        "attn_out_bias": bias,
        "qk_norm": "head",
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """A `config.json`. Raises ValueError for what it cannot say."""
    says = ("rope_theta", "rope_scaling", "tie_embeddings", "qkv_bias", "attn_out_bias", "qk_norm")
    refuse(
        "model_type 'qwen3'",
        config,
        (*says, "window", "pattern"),
        {
            f"qk_norm={config.qk_norm!r}": config.qk_norm != "head",
            "qkv_bias without attn_out_bias, or the reverse": (
                config.qkv_bias != config.attn_out_bias
            ),
        },
    )
    return {
        **write_decoder(config, base, "qwen3", "Qwen3ForCausalLM"),
        **write_rope(config),
        **write_qwen_windows(config),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
    }


def table(config: DecoderConfig, layout: Layout) -> Table:
    """Every tensor of a Qwen3."""
    rules = [
        *outer_rules(config),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *gated_mlp_rules(config),
    ]
    return Table(
        tuple(rules), decoder_sizes(config), tied=tied_head(config), ignored=IGNORED_TENSORS
    )


QWEN3 = Family(
    name="qwen3",
    format="hf",
    storage="safetensors",
    config_file="config.json",
    model_type="qwen3",
    read_config=read_config,
    write_config=write_config,
    table=table,
)
