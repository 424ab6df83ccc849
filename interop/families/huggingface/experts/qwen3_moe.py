"""Qwen3 MoE in the Hugging Face format: Qwen3 with experts on some layers or on all."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.experts import (
    expert_rules,
    read_expert_layout,
    read_experts,
    unsupported_by_softmax_experts,
    write_experts,
)
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    require_layer_types,
    shortest_pattern,
    unsupported_by_one_window,
    unsupported_layers,
)
from jaxllm.interop.families.common.llama_like import (
    attention_rules,
    decoder_table,
    gated_mlp_rules,
    layers_with_mlp,
    norm_rules,
    outer_rules,
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

SUPPORTED = (
    *("rope.theta", "rope.scaling", "head.tied", "attention.qkv_bias", "attention.out_bias"),
    *("attention.qk_norm", "attention.window", "pattern", "experts", "mlp.activation"),
)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    config = {
        **read_decoder(fields, num_key_value_heads=4, max_position_embeddings=32768),
        **read_rope(fields),
        **_read_layers(fields),
        **read_attention_bias(fields),
        "attention.qk_norm": "head",
    }
    return config, read_expert_layout(stored)


def _read_layers(fields: Fields) -> Json:
    """Reads the pattern of layers, the window and the experts."""
    window, sparse = _read_window(fields), read_sparse_layers(fields)
    experts = read_experts(fields, 128, 8, mlp_dim=768)
    kinds = [
        LayerKind(
            attention="full" if window is None else "window",
            mlp="experts" if is_sparse and experts is not None else "dense",
        )
        for is_sparse in sparse
    ]
    return {
        "attention.window": window,
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
        "experts": experts if any(sparse) else None,
    }


def _read_window(fields: Fields) -> int | None:
    """Returns the sliding window of every layer, or None."""
    window = fields.take_nullable("sliding_window", int, 4096)
    window = window if fields.take("use_sliding_window", bool, False) else None
    require_layer_types(fields, "full_attention" if window is None else "sliding_attention")
    return window


def read_sparse_layers(fields: Fields) -> list[bool]:
    """Whether each layer has experts: every n-th one, except those in `mlp_only_layers`."""
    count, step = fields.take("num_hidden_layers", int), fields.take("decoder_sparse_step", int, 1)
    dense = fields.take("mlp_only_layers", list, [])
    if step < 1:
        fields.problems.append(f"decoder_sparse_step={step} is less than 1")
        step = 1
    return [(i + 1) % step == 0 and i not in dense for i in range(count)]


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    refuse(
        "model_type 'qwen3_moe'",
        config,
        SUPPORTED,
        {
            **unsupported_values(config, {"attention.qk_norm": "head"}),
            **unsupported_by_one_bias(config),
            **unsupported_layers(config, attention=("full", "window"), rope=("global",)),
            **unsupported_by_one_window(config),
            **unsupported_by_softmax_experts(config),
        },
    )
    json = {
        **write_decoder(config, base, "qwen3_moe", "Qwen3MoeForCausalLM"),
        **write_rope(config),
        **write_experts(config, base),
        "attention_bias": config.attention.qkv_bias,
        "decoder_sparse_step": 1,
        "mlp_only_layers": layers_with_mlp(config, "dense"),
        "use_sliding_window": config.attention.window is not None,
        "sliding_window": config.attention.window,
        "max_window_layers": 0 if config.attention.window is not None else config.num_layers,
    }
    return {name: value for name, value in json.items() if name != "num_local_experts"}


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of Qwen3 MoE."""
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    rules = [
        *outer_rules(config),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *gated_mlp_rules(config, layers_with_mlp(config, "dense")),
        *expert_rules(config, layout, under="mlp", **names),
    ]
    return decoder_table(config, rules)


QWEN3_MOE = hf_family("qwen3_moe", read_config, write_config, table)
