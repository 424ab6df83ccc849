"""EXAONE 4 in the Hugging Face format: norms on outputs and heads, RoPE on sliding layers alone.

Without a window, all layers see all tokens and have RoPE.
"""

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, fixed, setting
from jaxllm.interop.families.common.described.rotary import rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_layer_types,
    shortest_pattern,
    write_layer_types,
)
from jaxllm.interop.families.common.llama_like import (
    attention_rules,
    end_rules,
    gated_mlp_rules,
    norm_rules,
)
from jaxllm.interop.rules.rule import Rule

FULL, SLIDING = "full_attention", "sliding_attention"
FIXED = {"norms.placement": "output", "attention.qk_norm": "head"}
WINDOW, PERIOD = 4096, 4
WITH_ROPE, WITHOUT, SLIDES = (
    LayerKind(),
    LayerKind(rope="none"),
    LayerKind(attention="window"),
)


def read_layers(fields: Fields) -> Json:
    """Reads the layers: if there is a window, those with full attention have no RoPE."""
    count = fields.take("num_hidden_layers", int)
    window = fields.take_nullable("sliding_window", int, WINDOW)
    types = read_layer_types(fields, _usual_types(fields, count, window))
    if window is None and SLIDING in types:
        fields.problems.append("layer_types has sliding_attention, but sliding_window is null")
    full = WITH_ROPE if window is None else WITHOUT
    kinds = [SLIDES if name == SLIDING else full for name in types]
    return {
        "attention.window": window if SLIDING in types else None,
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
    }


def _usual_types(fields: Fields, count: int, window: int | None) -> list[str]:
    """Returns the types of layers that are not listed: the last of a period sees all tokens."""
    if fields.data.get("layer_types") is not None:
        fields.ignore("sliding_window_pattern")  # which may then be text, such as "LLLG"
        return [FULL] * count
    period = fields.take("sliding_window_pattern", int, PERIOD) or count + 1
    is_full = [window is None or (i + 1) % period == 0 for i in range(count)]
    return [FULL if full else SLIDING for full in is_full]


def write_layers(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_layers`."""
    has_window = any(kind != WITH_ROPE for kind in config.kinds)
    usual = base.get("sliding_window") or WINDOW
    return {
        "layer_types": write_layer_types(config),
        "sliding_window": (config.attention.window or usual) if has_window else None,
    }


def unsupported_layers(config: DecoderConfig) -> dict[str, bool]:
    """Flags kinds of layers that cannot be, or not together."""
    kinds = {*config.kinds}
    others = sorted(str(kind) for kind in kinds - {WITH_ROPE, WITHOUT, SLIDES})
    return {
        f"layers with {' and '.join(others)}": bool(others),
        "full attention with RoPE beside other layers": WITH_ROPE in kinds and len(kinds) > 1,
    }


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
        *attention_rules(config),
        *gated_mlp_rules(config),
    ]


EXAONE4 = described_family(
    "exaone4",
    "Exaone4ForCausalLM",
    (
        sizes(2048, kv_heads=32),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        fixed(FIXED),
        activation("hidden_act", "silu"),
        rope(),
        Part(read_layers, write_layers, ("attention.window", "pattern"), unsupported_layers),
    ),
    rules,
)
