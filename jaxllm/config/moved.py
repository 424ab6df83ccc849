"""Old names of config fields, from when stack configs were flat, and their current dotted names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# The current name of each renamed field, by its old name.
MOVED = {
    "norm": "norms.kind",
    "norm_placement": "norms.placement",
    "norm_eps": "norms.eps",
    "embed_norm": "norms.embed",
    "final_norm": "norms.final",
    "final_norm_eps": "norms.final_eps",
    "positions": "positions.kind",
    "waves": "positions.waves",
    "position_offset": "positions.offset",
    "relative": "positions.relative",
    "rope_theta": "rope.theta",
    "local_rope_theta": "rope.local_theta",
    "rope_fraction": "rope.fraction",
    "rope_layout": "rope.layout",
    "rope_scaling": "rope.scaling",
    "causal": "attention.causal",
    "cross_attention": "attention.cross",
    "qkv_bias": "attention.qkv_bias",
    "attn_out_bias": "attention.out_bias",
    "qk_norm": "attention.qk_norm",
    "attn_scale": "attention.scale",
    "attn_softcap": "attention.softcap",
    "attn_temperature": "attention.temperature",
    "window": "attention.window",
    "chunk": "attention.chunk",
    "activation": "mlp.activation",
    "gated_mlp": "mlp.gated",
    "mlp_bias": "mlp.bias",
    "init": "init.kind",
    "init_std": "init.std",
    "param_dtype": "numerics.param_dtype",
    "dtype": "numerics.dtype",
    "tie_embeddings": "head.tied",
    "head_bias": "head.bias",
    "logit_scale": "head.scale",
    "logit_softcap": "head.softcap",
}
# Likewise for the fields of each layer kind in `pattern`.
MOVED_OF_KINDS = {"sees": "attention"}
FULL_ATTENTION = {"all": "full"}  # the old value of that field, and the current one
PARTS = {name.partition(".")[0] for name in MOVED.values()}
STACKS = ("encoder", "decoder")


def is_moved(name: str, value: Any) -> bool:
    """Whether a field of a stack is given by its old name.

    `positions` and `init` were strings and are now groups of fields: they count as old names only
    if their value is not a group.
    """
    return name in MOVED and not (name in PARTS and _is_group(value))


def check_moved(values: Mapping[str, Any]) -> None:
    """Raises ValueError that gives the new name of every field given by its old name."""
    if moved := [f"{name} is now {MOVED[name]}" for name in values if is_moved(name, values[name])]:
        raise ValueError("; ".join(moved))


def upgrade_name(name: str) -> str:
    """Returns the current name of a field, given by either name.

    For example, `encoder.rope_scaling.factor` gives `encoder.rope.scaling.factor`.
    """
    first, dot, rest = name.partition(".")
    if dot and first in STACKS:
        return f"{first}.{upgrade_name(rest)}"
    if first == "pattern":
        index, dot, field = rest.partition(".")
        return f"{first}.{index}.{MOVED_OF_KINDS.get(field, field)}" if dot else name
    if first in MOVED and not (dot and first in PARTS):
        return f"{MOVED[first]}{dot}{rest}"
    return name


def upgrade_given(name: str, value: Any) -> str:
    """Returns the current name of a field that has this value; a group of fields keeps its own."""
    is_part = name.rpartition(".")[2] in PARTS and _is_group(value)
    return name if is_part else upgrade_name(name)


def upgrade_pattern(pattern: Any) -> Any:
    """Converts the layer kinds of a stored pattern from old field names and values.

    Raises ValueError if a field is given twice. What is not a layer kind is left as it is.
    """
    if not isinstance(pattern, list | tuple):
        return pattern
    return type(pattern)(_upgrade_kind(kind) for kind in pattern)


def _upgrade_kind(kind: Any) -> Any:
    if not isinstance(kind, Mapping) or "sees" not in kind:
        return kind
    if "attention" in kind:
        raise ValueError("attention of a layer kind is given twice (sees, attention)")
    value = kind["sees"]
    current = FULL_ATTENTION.get(value, value) if isinstance(value, str) else value
    return {"attention": current, **{name: kind[name] for name in kind if name != "sees"}}


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)
