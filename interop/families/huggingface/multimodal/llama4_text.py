"""The text model of Llama 4 in the Hugging Face format (`model_type: llama4_text`).

Rotated pairs are adjacent. Some layers have no RoPE and full attention; the others have RoPE and
chunked attention. Some layers have experts, stored with each projection fused over all experts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxllm.config import DecoderConfig, ExpertsConfig, LayerKind, TemperatureConfig
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_layer_types,
    read_nope_layers,
    shortest_pattern,
    unsupported_layers,
    write_layer_types,
    write_nope_layers,
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
from jaxllm.interop.families.common.unsupported import refuse, unsupported_by_one_bias
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

SUPPORTED = (
    *("rope.theta", "rope.scaling", "head.tied", "attention.qkv_bias", "attention.out_bias"),
    *("attention.qk_norm", "attention.temperature", "attention.chunk", "pattern", "experts"),
    "mlp.activation",
)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    return read_text(fields), Layout()


def read_text(fields: Fields) -> Json:
    """Reads the config of the text model."""
    decoder = read_decoder(
        fields,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
    )
    return {
        **decoder,
        **read_rope(fields, default_theta=500000.0),
        **read_layers(fields),
        "mlp_dim": fields.take("intermediate_size_mlp", int, 16384),
        **read_attention_bias(fields),
        "attention.qk_norm": "after_rope" if fields.take("use_qk_norm", bool, True) else "none",
        "attention.temperature": _read_temperature(fields),
    }


def read_layers(fields: Fields) -> Json:
    """Reads the pattern of layers, the chunk size and the experts."""
    count = fields.take("num_hidden_layers", int)
    nope, moe = read_nope_layers(fields, count), _read_moe_layers(fields, count)
    chunk = fields.take_nullable("attention_chunk_size", int, 8192)
    types = read_layer_types(
        fields, ["full_attention" if i in nope else "chunked_attention" for i in range(count)]
    )
    if "sliding_attention" in types:
        fields.problems.append("layer_types has sliding_attention, which Llama 4 does not support")
    if chunk is None:  # as Llama Guard 4 has it
        types = ["full_attention"] * count
    if not moe:
        fields.ignore("num_local_experts", "num_experts_per_tok")
    experts = _read_experts(fields) if moe else None
    kinds = [
        LayerKind(
            attention="chunk" if types[i] == "chunked_attention" else "full",
            rope="none" if i in nope else "global",
            mlp="experts" if i in moe and experts is not None else "dense",
        )
        for i in range(count)
    ]
    return {
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
        "attention.chunk": chunk if "chunked_attention" in types else None,
        "experts": experts,
    }


def _read_moe_layers(fields: Fields, count: int) -> set[int]:
    """Returns the indices of the layers with experts."""
    step = fields.take("interleave_moe_layer_step", int, 1)
    every = list(range(step - 1, count, step)) if step > 0 else []
    given = fields.take("moe_layers", list, every)
    if wrong := [i for i in given if type(i) is not int]:
        fields.problems.append(f"moe_layers holds {wrong!r}, which are not layer indices")
    return set(range(count)).intersection(i for i in given if type(i) is int)


def _read_experts(fields: Fields) -> ExpertsConfig | None:
    return fields.build(
        llama4_experts,
        num_experts=fields.take("num_local_experts", int, 16),
        top_k=fields.take("num_experts_per_tok", int, 1),
        mlp_dim=fields.take("intermediate_size", int),
    )


def _read_temperature(fields: Fields) -> TemperatureConfig | None:
    # A flag today; transformers 4.51 wrote a number, where only 0 means no.
    kind = int if type(fields.data.get("attn_temperature_tuning")) is int else bool
    return build_temperature(fields, fields.take("attn_temperature_tuning", kind, True))


def build_temperature(fields: Fields, is_tuned: object) -> TemperatureConfig | None:
    """Builds the attention temperature of layers without RoPE, or None if it is not enabled."""
    scale = fields.take("attn_scale", float, 0.1)
    floor_scale = fields.take("floor_scale", float, 8192.0)
    if not is_tuned:
        return None
    return fields.build(TemperatureConfig, scale=scale, floor_scale=floor_scale)


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    refuse("model_type 'llama4_text'", config, SUPPORTED, unsupported(config))
    return write_text(config, base)


def unsupported(config: DecoderConfig) -> dict[str, bool]:
    """Flags values that the text config does not support."""
    qk_norm, temperature = config.attention.qk_norm, config.attention.temperature
    return {
        f"attention.qk_norm={qk_norm!r}": qk_norm not in ("none", "after_rope"),
        **unsupported_by_one_bias(config),
        **unsupported_layers(config, attention=("full", "chunk"), rope=("global", "none")),
        **unsupported_experts(config),
        **unsupported_temperature(config),
        "a fractional attention.temperature.floor_scale": (
            temperature is not None and not temperature.floor_scale.is_integer()
        ),
    }


def unsupported_temperature(config: DecoderConfig) -> dict[str, bool]:
    """Flags a temperature that is not that of layers without RoPE, or counts from another token."""
    given, usual = config.attention.temperature, TemperatureConfig()
    return {
        f"attention.temperature.{name}={getattr(given, name)!r}": (
            getattr(given, name) != getattr(usual, name)
        )
        for name in ("offset", "layers")
        if given is not None
    }


def unsupported_experts(config: DecoderConfig) -> dict[str, bool]:
    """Flags expert settings, except the loss, that Llama 4 does not have."""
    experts = config.experts
    if experts is None:
        return {}
    kept = ("num_experts", "top_k", "mlp_dim", "aux_weight", "balance")
    llama4 = llama4_experts(**{name: getattr(experts, name) for name in kept})
    return {
        f"experts.{name}={getattr(experts, name)!r}, only {value!r}": (
            getattr(experts, name) != value
        )
        for name, value in dataclasses.asdict(llama4).items()
    }


def llama4_experts(*, mlp_dim: int, **values: Any) -> ExpertsConfig:
    """Builds Llama 4's experts: sigmoid-scaled inputs, and a shared expert of the same width."""
    return ExpertsConfig(
        mlp_dim=mlp_dim, shared_mlp_dim=mlp_dim, scores="sigmoid", scale="input", **values
    )


def write_text(config: DecoderConfig, base: Json) -> Json:
    """Writes the config of the text model."""
    experts, attention = config.experts, config.attention
    chunk, temperature = attention.chunk, attention.temperature
    json = {
        **write_decoder(config, base, "llama4_text", "Llama4ForCausalLM"),
        **write_rope(config),
        "attention_bias": config.attention.qkv_bias,
        "intermediate_size": config.mlp_dim if experts is None else experts.mlp_dim,
        "intermediate_size_mlp": config.mlp_dim,
        "use_qk_norm": config.attention.qk_norm == "after_rope",
        "no_rope_layers": write_nope_layers(config),
        "moe_layers": layers_with_mlp(config, "experts"),
        "layer_types": write_layer_types(config),
        # transformers requires a number even if no layer has chunks.
        "attention_chunk_size": config.max_len if chunk is None else chunk,
        "attn_temperature_tuning": temperature is not None,
    }
    if experts is not None:
        json |= {"num_local_experts": experts.num_experts, "num_experts_per_tok": experts.top_k}
    if temperature is not None:
        json |= {"attn_scale": temperature.scale, "floor_scale": int(temperature.floor_scale)}
    return json


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of the text model."""
    return decoder_table(config, text_rules(config))


def text_rules(config: DecoderConfig) -> list[Rule]:
    """Rules for the text model."""
    return [
        *outer_rules(config),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config, stored_pairs="h r"),
        *gated_mlp_rules(config, layers_with_mlp(config, "dense"), theirs="feed_forward"),
        *expert_rules(config),
    ]


def expert_rules(config: DecoderConfig) -> list[Rule]:
    """Rules for the router, the experts (gates before values) and the shared expert."""
    if config.experts is None:
        return []
    theirs, ours = "model.layers.{L}.feed_forward.", "layers.{L}.mlp."
    layers = layers_with_mlp(config, "experts")
    sides = [
        ("router.weight : E D", "router.kernel : D E"),
        ("experts.gate_up_proj : E D (G X)", "{G=gate_proj|up_proj}.kernel : E D X"),
        ("experts.down_proj : E X D", "down_proj.kernel : E X D"),
    ]
    return [
        *(Rule(theirs + stored, ours + model, layers=layers) for stored, model in sides),
        *gated_mlp_rules(
            config, layers, theirs="feed_forward.shared_expert", ours="mlp.shared", width="S"
        ),
    ]


LLAMA4_TEXT = hf_family("llama4_text", read_config, write_config, table)
