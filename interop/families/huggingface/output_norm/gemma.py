"""Config fields and tensor rules shared by Gemma 2 and 3 in the Hugging Face format."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    ATTENTION,
    read_layer_types,
    shortest_pattern,
    write_layer_types,
)
from jaxllm.interop.families.common.llama_like import (
    attention_rules,
    decoder_table,
    gated_mlp_rules,
    norm_rules,
    outer_rules,
    read_attention_bias,
    read_decoder,
    write_decoder,
)
from jaxllm.interop.families.common.unsupported import (
    refuse,
    unsupported_by_one_bias,
    unsupported_values,
)
from jaxllm.interop.rules.rule import Rule

SUPPORTED = (
    *("norms.kind", "norms.placement", "embed_scale", "mlp.activation", "attention.scale"),
    *("attention.softcap", "head.softcap", "attention.qkv_bias", "attention.out_bias", "head.tied"),
    *("attention.window", "pattern", "rope.theta", "rope.scaling"),
)
# Layer kinds of Gemma 2, by their names in `layer_types`.
KINDS = {"sliding_attention": LayerKind(attention="window"), "full_attention": LayerKind()}


def read_gemma(
    fields: Fields,
    is_full: Callable[[int], bool],
    kinds: Mapping[str, LayerKind] = KINDS,
    **defaults: Any,
) -> Json:
    """Reads all fields except RoPE and the soft caps.

    Args:
        fields: the config file.
        is_full: whether the layer with this index has full attention if `layer_types` is absent.
        kinds: the layer kinds by their names in `layer_types`.
        defaults: as for `read_decoder`.
    """
    fields.require("use_bidirectional_attention", None, False)
    decoder = read_decoder(
        fields,
        activation="hidden_activation",
        hidden_activation="gelu_pytorch_tanh",
        num_key_value_heads=4,
        head_dim=256,
        tie_word_embeddings=True,
        **defaults,
    )
    return {
        **decoder,
        **_read_windows(fields, is_full, kinds),
        "norms.kind": "rms_plus_one",
        "norms.placement": "sandwich",
        "embed_scale": decoder["embed_dim"] ** 0.5,
        "attention.scale": fields.take("query_pre_attn_scalar", float, 256.0) ** -0.5,
        **read_attention_bias(fields),
    }


def _read_windows(
    fields: Fields, is_full: Callable[[int], bool], kinds: Mapping[str, LayerKind]
) -> Json:
    count = fields.take("num_hidden_layers", int)
    types = read_layer_types(
        fields, ["full_attention" if is_full(i) else "sliding_attention" for i in range(count)]
    )
    window = fields.take_nullable("sliding_window", int, 4096)
    has_sliding = "sliding_attention" in types
    if has_sliding and window is None:
        fields.problems.append("layer_types has sliding_attention, but sliding_window is null")
    pattern = shortest_pattern(
        [kinds.get(name, LayerKind(attention=ATTENTION[name])) for name in types]
    )
    return {
        "attention.window": window if has_sliding else None,
        "pattern": pattern or (LayerKind(),),
    }


def refuse_gemma(
    format_name: str,
    config: DecoderConfig,
    supported: tuple[str, ...],
    unsupported: Mapping[str, bool],
    kinds: Mapping[str, LayerKind] = KINDS,
) -> None:
    """As `refuse`, including everything that neither Gemma 2 nor Gemma 3 supports."""
    others = sorted({str(kind) for kind in config.kinds if kind not in kinds.values()})
    scale = config.embed_dim**0.5
    refuse(
        format_name,
        config,
        (*SUPPORTED, *supported),
        {
            **unsupported_values(
                config, {"norms.kind": "rms_plus_one", "norms.placement": "sandwich"}
            ),
            f"embed_scale={config.embed_scale}, only {scale}": config.embed_scale != scale,
            f"attention.scale={config.attention.scale}, only 1 / sqrt(a whole number)": (
                _pre_attn_scalar(config) is None
            ),
            **unsupported_by_one_bias(config),
            f"layers with {' and '.join(others)}": bool(others),
            **unsupported,
        },
    )


def _pre_attn_scalar(config: DecoderConfig) -> int | None:
    """Returns `query_pre_attn_scalar`, 1 / scale ** 2; None if it is not a whole number."""
    if config.attention.scale is None:
        return config.head_dim
    scalar = round(config.attention.scale**-2)
    return scalar if scalar > 0 and scalar**-0.5 == config.attention.scale else None


def write_gemma(config: DecoderConfig, base: Json, model_type: str, architecture: str) -> Json:
    """Writes the fields of `read_gemma`."""
    return {
        **write_decoder(config, base, model_type, architecture, activation="hidden_activation"),
        "query_pre_attn_scalar": _pre_attn_scalar(config),
        "final_logit_softcapping": config.head.softcap,
        "attn_logit_softcapping": config.attention.softcap,
        "attention_bias": config.attention.qkv_bias,
        # transformers builds the sliding mask even if no layer uses it.
        "sliding_window": config.attention.window or base.get("sliding_window") or 4096,
        "layer_types": write_layer_types(config),
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor."""
    rules: list[Rule] = [
        *outer_rules(config),
        *norm_rules(
            attn_norm="input_layernorm",
            attn_out_norm="post_attention_layernorm",
            mlp_norm="pre_feedforward_layernorm",
            mlp_out_norm="post_feedforward_layernorm",
        ),
        *attention_rules(config),
        *gated_mlp_rules(config),
    ]
    return decoder_table(config, rules)
