"""Config fields of Meta's Llama 4 and of `LLM` beyond those of Llama 3."""

from collections.abc import Sequence

from jaxllm.config import DecoderConfig, ExpertsConfig, LayerKind, RopeScaling, defaults, flatten
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import shortest_pattern, unsupported_layers
from jaxllm.interop.families.common.llama_like import layers_with_mlp
from jaxllm.interop.families.huggingface.multimodal.llama4_text import (
    build_temperature,
    llama4_experts,
    unsupported_experts,
    unsupported_temperature,
)
from jaxllm.interop.families.huggingface.multimodal.llama4_vision import (
    read_meta_vision,
    unsupported_by_meta_vision,
    write_meta_vision,
)

from .params_json import mlp_width, width_fields

# Default constants where the arguments do not give them: those of Llama 4 Scout.
SCALED_ROPE = RopeScaling(kind="llama3", factor=16.0, high_freq_factor=1.0)
# Any of these fields identifies a `params.json` as Llama 4's.
FIELDS = frozenset(
    (
        *("attention_chunk_size", "nope_layer_interval", "use_qk_norm", "attn_temperature_tuning"),
        *("floor_scale", "attn_scale", "ffn_exp", "moe_args", "vision_args"),
    )
)
SUPPORTED = (
    *("attention.qk_norm", "attention.temperature", "attention.chunk", "pattern", "experts"),
    "vision",
)
EXPANSION = 4.0  # default of `ffn_exp`: MLP width / embed_dim before it is reduced


def implied_scaling(params: Json) -> RopeScaling:
    """Returns the scaling that Meta's code takes for `use_scaled_rope` without constants."""
    return SCALED_ROPE


def read_llama4(fields: Fields) -> Json:
    """Reads which layers have RoPE, chunks and experts, the width of the experts, and vision."""
    fields.require("lora_args", None)
    fields.require("quantization_args", None)
    count = fields.take("n_layers", int)
    nope = _read_every(fields, "nope_layer_interval", count)
    chunk = fields.take("attention_chunk_size", int, None)
    experts, moe = _read_experts(fields, count)
    kinds = [
        LayerKind(
            attention="full" if chunk is None or i in nope else "chunk",
            rope="none" if i in nope else "global",
            mlp="experts" if i in moe else "dense",
        )
        for i in range(count)
    ]
    has_chunks = any(kind.attention == "chunk" for kind in kinds)
    return {
        # The arguments lack the context length; these are those of the instruction-tuned Scout
        # (scaled RoPE) and Maverick.
        "max_len": 10485760 if fields.data.get("use_scaled_rope") else 1048576,
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
        "attention.chunk": chunk if has_chunks else None,
        "experts": experts,
        "attention.qk_norm": "after_rope" if fields.take("use_qk_norm", bool, False) else "none",
        "attention.temperature": build_temperature(
            fields, fields.take("attn_temperature_tuning", bool, False)
        ),
        "vision": read_meta_vision(fields),
    }


def _read_every(fields: Fields, name: str, count: int, default: int | None = None) -> range:
    """Reads an interval of n layers and returns the last of every n."""
    interval = fields.take(name, int, default)
    if interval is None:
        return range(0)
    if interval < 1:
        fields.problems.append(f"{name}={interval} is less than 1")
        return range(0)
    return range(interval - 1, count, interval)


def _read_experts(fields: Fields, count: int) -> tuple[ExpertsConfig | None, range]:
    """Reads the experts and the layers that have them."""
    expansion = fields.take("ffn_exp", float, EXPANSION)
    if fields.take("moe_args", dict, None) is None:
        return None, range(0)
    with fields.part("moe_args") as moe:
        moe.require("use_shared_expert", True)
        layers = _read_every(moe, "interleave_moe_layer_step", count, 1)
        is_scaled = moe.take("auto_scale_F", bool, True)
        capacity = moe.take("capacity_factor", float, 1.0)
        width = mlp_width(
            fields.take("dim", int),
            fields.take("multiple_of", int, 256),
            fields.take("ffn_dim_multiplier", float, None),
            thirds=True,
            expansion=expansion,
            shares=capacity + 1 if is_scaled else 1.0,
        )
        experts = moe.build(
            llama4_experts,
            num_experts=moe.take("num_experts", int),
            top_k=moe.take("top_k", int, 1),
            mlp_dim=width,
        )
    return experts, layers if experts is not None else range(0)


def is_llama4(config: DecoderConfig) -> bool:
    """Whether the config uses anything that Llama 3 does not have."""
    given, llama3 = flatten(config), defaults(type(config))
    return any(given[name] != llama3[name] for name in SUPPORTED)


def unsupported_by_llama4(config: DecoderConfig) -> dict[str, bool]:
    """Flags layer settings that these arguments do not support."""
    kinds, qk_norm = config.kinds, config.attention.qk_norm
    chunked = {i for i, kind in enumerate(kinds) if kind.attention == "chunk"}
    has_rope = {i for i, kind in enumerate(kinds) if kind.rope != "none"}
    return {
        f"attention.qk_norm={qk_norm!r}": qk_norm not in ("none", "after_rope"),
        **unsupported_layers(config, attention=("full", "chunk"), rope=("global", "none")),
        "chunks on layers other than those with RoPE": bool(chunked) and chunked != has_rope,
        "layers without RoPE other than every n-th": _interval(_nope(config), config) == 0,
        "experts on layers other than every n-th": _interval(_moe(config), config) == 0,
        **unsupported_experts(config),
        **unsupported_temperature(config),
        **unsupported_by_meta_vision(config),
    }


def _nope(config: DecoderConfig) -> list[int]:
    return [i for i, kind in enumerate(config.kinds) if kind.rope == "none"]


def _moe(config: DecoderConfig) -> list[int]:
    return layers_with_mlp(config, "experts")


def _interval(layers: Sequence[int], config: DecoderConfig, given: int | None = None) -> int | None:
    """Returns the interval n such that `layers` are the last of every n; prefers `given`.

    None if `layers` is empty, 0 if there is no such interval.
    """

    def fits(interval: int) -> bool:
        return list(range(interval - 1, config.num_layers, interval)) == list(layers)

    if given is not None and fits(given):
        return given
    return next(filter(fits, range(1, config.num_layers + 1)), 0) if layers else None


def write_llama4(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_llama4` and those for the MLP widths."""
    temperature = config.attention.temperature
    json = {
        **_write_widths(config, base),
        "attention_chunk_size": config.attention.chunk,
        "nope_layer_interval": _interval(_nope(config), config, base.get("nope_layer_interval")),
        "use_qk_norm": config.attention.qk_norm == "after_rope",
        "attn_temperature_tuning": temperature is not None,
        "vision_args": write_meta_vision(config.vision, base.get("vision_args") or {}),
    }
    if temperature is not None:
        json |= {"attn_scale": temperature.scale, "floor_scale": temperature.floor_scale}
    return json


def _write_widths(config: DecoderConfig, base: Json) -> Json:
    """Writes fields that give `mlp_dim` of dense layers and experts; keeps `base` where it fits."""
    dense, experts = width_fields(config, base, thirds_with_multiplier=True), config.experts
    if experts is None:
        return {**dense, "moe_args": None}
    old = base.get("moe_args") or {}
    is_scaled, capacity = old.get("auto_scale_F", True), old.get("capacity_factor", 1.0)
    expansion = base.get("ffn_exp") or EXPANSION
    width = mlp_width(
        config.embed_dim,
        dense["multiple_of"],
        dense["ffn_dim_multiplier"],
        thirds=True,
        expansion=expansion,
        shares=capacity + 1 if is_scaled else 1.0,
    )
    if width != experts.mlp_dim:
        # With an expansion of 4, experts would be as wide as dense layers but for their share.
        dense = width_fields(config, {}, thirds_with_multiplier=True, exact=True)
        is_scaled, expansion = True, EXPANSION
        capacity = config.mlp_dim / (experts.mlp_dim + 0.5) - 1
    step = _interval(_moe(config), config, old.get("interleave_moe_layer_step"))
    moe = {
        **old,
        "num_experts": experts.num_experts,
        "top_k": experts.top_k,
        "interleave_moe_layer_step": step,
        "auto_scale_F": is_scaled,
        "capacity_factor": capacity,
    }
    return {**dense, "ffn_exp": expansion, "moe_args": moe}
