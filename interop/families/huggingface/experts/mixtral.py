"""Mixtral in the Hugging Face format: Mistral with experts in place of every layer's MLP."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig, ExpertsConfig
from jaxllm.interop.families.common.experts import (
    expert_rules,
    read_balance,
    read_expert_layout,
    read_num_experts,
    unsupported_by_softmax_experts,
    write_balance,
)
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_uniform_window,
    unsupported_by_one_window,
    unsupported_layers,
)
from jaxllm.interop.families.common.llama_like import (
    attention_rules,
    decoder_table,
    norm_rules,
    outer_rules,
    read_decoder,
    write_decoder,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    decoder = read_decoder(
        fields, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5
    )
    experts = fields.build(
        ExpertsConfig,
        num_experts=read_num_experts(fields, 8),
        top_k=fields.take("num_experts_per_tok", int, 2),
        mlp_dim=decoder["mlp_dim"],
        normalize=True,
        **read_balance(fields),
    )
    config = {
        **decoder,
        **read_rope(fields, default_theta=1000000.0),
        **read_uniform_window(fields, mlp="experts"),
        "experts": experts,
    }
    return config, read_expert_layout(stored)


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    experts = config.experts
    refuse(
        "model_type 'mixtral'",
        config,
        (
            *("rope.theta", "rope.scaling", "head.tied", "mlp.activation"),
            *("attention.window", "pattern", "experts"),
        ),
        {
            **unsupported_layers(
                config, attention=("full", "window"), rope=("global",), mlp=("experts",)
            ),
            **unsupported_by_one_window(config),
            **unsupported_by_softmax_experts(config),
            "experts.normalize=False": experts is not None and not experts.normalize,
        },
    )
    assert experts is not None, "refused above"
    return {
        **write_decoder(config, base, "mixtral", "MixtralForCausalLM"),
        **write_rope(config),
        **write_balance(experts, base),
        "intermediate_size": experts.mlp_dim,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "sliding_window": config.attention.window,
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of Mixtral."""
    rules = [
        *outer_rules(config),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *expert_rules(config, layout, under="block_sparse_moe", gate="w1", up="w3", down="w2"),
    ]
    return decoder_table(config, rules)


MIXTRAL = hf_family("mixtral", read_config, write_config, table)
