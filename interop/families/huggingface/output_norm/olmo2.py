"""OLMo 2 in the Hugging Face format: norms on sublayer outputs, QK norm over all heads."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import require_full_attention
from jaxllm.interop.families.common.llama_like import (
    attention_rules,
    decoder_table,
    end_rules,
    gated_mlp_rules,
    head_rules,
    norm_rules,
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
from jaxllm.interop.rules.rule import Rule

FIXED = {"norms.kind": "rms_float32", "norms.placement": "output", "attention.qk_norm": "full"}


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    require_full_attention(fields)
    config = {
        **read_decoder(fields, rms_norm_eps=1e-5),
        **read_rope(fields),
        **FIXED,
        **read_attention_bias(fields),
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
        "attention.out_bias",
    )
    refuse(
        "model_type 'olmo2'",
        config,
        (*supported, *FIXED),
        {
            **unsupported_values(config, FIXED),
            **unsupported_by_one_bias(config),
        },
    )
    return {
        **write_decoder(config, base, "olmo2", "Olmo2ForCausalLM"),
        **write_rope(config),
        "attention_bias": config.attention.qkv_bias,
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of OLMo 2."""
    return decoder_table(config, [*olmo2_rules(config, layout), *head_rules(config)])


def olmo2_rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
        *attention_rules(config),
        *gated_mlp_rules(config),
    ]


OLMO2 = hf_family("olmo2", read_config, write_config, table)
