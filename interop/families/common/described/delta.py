"""Layers of gated DeltaNet beside gated attention, in a config file, and their rules.

The names are those of Qwen3-Next in transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from jaxllm.config import DecoderConfig, DeltaConfig
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import read_layer_types
from jaxllm.interop.families.common.llama_like import attention_rules
from jaxllm.interop.rules.rule import Rule

from .part import Part, fixed

KINDS: Mapping[str, Literal["full", "delta"]] = {
    "linear_attention": "delta",
    "full_attention": "full",
}
FIXED = {"norms.kind": "rms_plus_one", "attention.qk_norm": "head", "attention.gated": True}
# The fields of `DeltaConfig`, with their defaults.
SIZES = {
    "num_heads": ("linear_num_value_heads", 32),
    "num_key_heads": ("linear_num_key_heads", 16),
    "key_dim": ("linear_key_head_dim", 128),
    "value_dim": ("linear_value_head_dim", 128),
    "conv_size": ("linear_conv_kernel_dim", 4),
}
THEIRS, OURS = "model.layers.{L}.linear_attn.", "layers.{L}.attn."


def gated_layers() -> Part:
    """Zero-centred norms, also of queries and keys, and a gate of what attention returns."""
    return fixed(FIXED)


def read_attentions(fields: Fields) -> tuple[list[Literal["full", "delta"]], DeltaConfig | None]:
    """Returns the kind of attention of each layer, and the sizes of gated DeltaNet if any has it.

    By default every fourth layer has attention, or every n-th as an older field says.
    """
    count = fields.take("num_hidden_layers", int)
    interval = fields.take("full_attention_interval", int, 4)
    if interval < 1:
        fields.problems.append(f"full_attention_interval={interval} is less than 1")
        interval = 1
    usual = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]
    kinds = [KINDS[name] for name in read_layer_types(fields, usual, KINDS)]
    sizes = {ours: fields.take(name, int, default) for ours, (name, default) in SIZES.items()}
    return kinds, fields.build(DeltaConfig, **sizes) if "delta" in kinds else None


def write_attentions(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_attentions`."""
    names: dict[str, str] = {kind: name for name, kind in KINDS.items()}
    delta = config.attention.delta
    sizes = {} if delta is None else {n: getattr(delta, ours) for ours, (n, _) in SIZES.items()}
    types = [names[kind.attention] for kind in config.kinds]
    return {**sizes, "layer_types": types}


def unsupported_kinds(config: DecoderConfig) -> dict[str, bool]:
    """Flags layers with a window or chunks, or without RoPE."""
    kinds = {
        f"layers with attention={kind.attention!r} and rope={kind.rope!r}"
        for kind in config.kinds
        if kind.attention not in KINDS.values() or kind.rope != "global"
    }
    return dict.fromkeys(sorted(kinds), True)


def layers_with(config: DecoderConfig, attention: str) -> list[int]:
    """Returns the indices of the layers with this kind of attention."""
    return [i for i, kind in enumerate(config.kinds) if kind.attention == attention]


def gated_attention_rules(config: DecoderConfig) -> list[Rule]:
    """Rules of attention whose output has a gate; each head's is stored after its queries."""
    theirs, layers = "model.layers.{L}.self_attn.", layers_with(config, "full")
    rules = []
    for part, name in (("q", "q_proj"), ("gate", "gate_proj")):
        stored, ours = f"{theirs}q_proj", f"{OURS}{name}"
        rules.append(Rule(f"{stored}.weight#{{N}}{part} : H D", f"{ours}.kernel : D N H"))
        if config.attention.qkv_bias:
            rules.append(Rule(f"{stored}.bias#{{N}}{part} : H", f"{ours}.bias : N H"))
    others = [rule for rule in attention_rules(config) if ".q_proj." not in rule.stored.name]
    return _on([*rules, *others], layers)


def delta_rules(config: DecoderConfig, inputs: Sequence[Rule]) -> list[Rule]:
    """Rules of the layers of gated DeltaNet, with the family's own of its input projections.

    Q heads of queries and keys, of U elements, serve g heads of values each, of W elements. A
    convolution spans w tokens; o is 1.
    """
    conv = f"{THEIRS}conv1d.weight"
    rules = [
        *inputs,
        Rule(f"{conv}#q : (Q U) o w", f"{OURS}q_conv.kernel : Q U (o w)"),
        Rule(f"{conv}#k : (Q U) o w", f"{OURS}k_conv.kernel : Q U (o w)"),
        Rule(f"{conv}#v : (Q g W) o w", f"{OURS}v_conv.kernel : (Q g) W (o w)"),
        Rule(f"{THEIRS}A_log : (Q g)", f"{OURS}decay_rate : (Q g)"),
        Rule(f"{THEIRS}dt_bias : (Q g)", f"{OURS}decay_bias : (Q g)"),
        Rule(f"{THEIRS}norm.weight : W", f"{OURS}norm.scale : W"),
        Rule(f"{THEIRS}out_proj.weight : D (Q g W)", f"{OURS}o_proj.kernel : (Q g) W D"),
    ]
    return _on(rules, layers_with(config, "delta"))


def fused_inputs() -> list[Rule]:
    """Rules of input projections that are stored together, by heads of queries and keys."""
    wide, narrow = f"{THEIRS}in_proj_qkvz.weight", f"{THEIRS}in_proj_ba.weight"
    return [
        Rule(f"{wide}#{{Q}}q : U D", f"{OURS}q_proj.kernel : D Q U"),
        Rule(f"{wide}#{{Q}}k : U D", f"{OURS}k_proj.kernel : D Q U"),
        Rule(f"{wide}#{{Q}}v : (g W) D", f"{OURS}v_proj.kernel : D (Q g) W"),
        Rule(f"{wide}#{{Q}}z : (g W) D", f"{OURS}gate_proj.kernel : D (Q g) W"),
        Rule(f"{narrow}#{{Q}}b : g D", f"{OURS}beta_proj.kernel : D (Q g)"),
        Rule(f"{narrow}#{{Q}}a : g D", f"{OURS}decay_proj.kernel : D (Q g)"),
    ]


def separate_inputs() -> list[Rule]:
    """Rules of input projections of which only those before the convolution are fused."""
    wide = f"{THEIRS}in_proj_qkv.weight"
    return [
        Rule(f"{wide}#q : (Q U) D", f"{OURS}q_proj.kernel : D Q U"),
        Rule(f"{wide}#k : (Q U) D", f"{OURS}k_proj.kernel : D Q U"),
        Rule(f"{wide}#v : (Q g W) D", f"{OURS}v_proj.kernel : D (Q g) W"),
        Rule(f"{THEIRS}in_proj_z.weight : (Q g W) D", f"{OURS}gate_proj.kernel : D (Q g) W"),
        Rule(f"{THEIRS}in_proj_b.weight : (Q g) D", f"{OURS}beta_proj.kernel : D (Q g)"),
        Rule(f"{THEIRS}in_proj_a.weight : (Q g) D", f"{OURS}decay_proj.kernel : D (Q g)"),
    ]


def delta_axes(config: DecoderConfig) -> dict[str, int]:
    """Returns the sizes of the axes of `delta_rules`; o is also that of a shared expert's gate."""
    delta = config.attention.delta
    if delta is None:
        return {"O": 1}
    return {
        **{"O": 1, "o": 1, "w": delta.conv_size},
        **{"Q": delta.num_key_heads, "g": delta.num_heads // delta.num_key_heads},
        **{"U": delta.key_dim, "W": delta.value_dim},
    }


def _on(rules: Sequence[Rule], layers: Sequence[int]) -> list[Rule]:
    """Returns the rules on these layers alone."""
    return [Rule(rule.stored, rule.model, layers=layers) for rule in rules] if layers else []
