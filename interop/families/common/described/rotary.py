"""RoPE in a config file, and which layers have which attention."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from jaxllm.config import DecoderConfig, LayerKind, RopeLayout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_layer_types,
    read_uniform_window,
    require_full_attention,
    shortest_pattern,
    unsupported_by_one_window,
    unsupported_layers,
    write_layer_types,
)
from jaxllm.interop.families.common.rope import read_rope, write_rope

from .part import Part

KINDS: Mapping[str, LayerKind] = MappingProxyType(
    {"full_attention": LayerKind(), "sliding_attention": LayerKind(attention="window")}
)


def rope(
    theta: float = 10000.0,
    *,
    fraction: float | None = None,
    layout: RopeLayout = "half",
) -> Part:
    """RoPE: base, scaling and, for families that rotate a part of each head, the fraction.

    Args:
        theta: the base if the file does not give it.
        fraction: the fraction if the file does not give it; None: whole heads.
        layout: of the pairs, if a part of each head is rotated; models of the other layout are
            then refused. Whole heads may have any layout, since rules reorder their elements.
    """

    def read(fields: Fields) -> Json:
        own = {} if fraction is None else {"rope.layout": layout}
        return {**read_rope(fields, theta, fraction=fraction), **own}

    def write(config: DecoderConfig, base: Json) -> Json:
        part = {} if fraction is None else {"partial_rotary_factor": config.rope.fraction}
        return {**write_rope(config), **part}

    def unsupported(config: DecoderConfig) -> dict[str, bool]:
        differs = fraction is not None and config.rope.layout != layout
        return {f"rope.layout={config.rope.layout!r}": differs}

    ours = ("rope.theta", "rope.scaling", "rope.layout")
    return Part(read, write, ours if fraction is None else (*ours, "rope.fraction"), unsupported)


def full_attention() -> Part:
    """Full attention on every layer."""

    def read(fields: Fields) -> Json:
        require_full_attention(fields)
        return {}

    return Part(read)


def uniform_window(default: int | None = None, mlp: Literal["dense", "experts"] = "dense") -> Part:
    """One sliding window on all layers, or null for full attention."""
    return Part(
        lambda fields: read_uniform_window(fields, default, mlp),
        lambda config, base: {"sliding_window": config.attention.window},
        ("attention.window", "pattern"),
        lambda config: {
            **unsupported_layers(
                config, attention=("full", "window"), rope=("global",), mlp=(mlp,)
            ),
            **unsupported_by_one_window(config),
        },
    )


def layer_types(
    default: Callable[[Fields, int], Sequence[str]],
    window: int | None,
    kinds: Mapping[str, LayerKind] = KINDS,
) -> Part:
    """The kind of each layer in `layer_types`, and the window of those that slide.

    Args:
        default: returns the names of the layers' types, from the file and their number, if the
            file does not list them.
        window: the window if the file does not give it.
        kinds: maps names of types to kinds of layers.
    """

    def read(fields: Fields) -> Json:
        count = fields.take("num_hidden_layers", int)
        types = read_layer_types(fields, default(fields, count))
        given = fields.take_nullable("sliding_window", int, window)
        slides = "sliding_attention" in types
        if slides and given is None:
            fields.problems.append("layer_types has sliding_attention, but sliding_window is null")
        pattern = shortest_pattern([kinds.get(name, LayerKind()) for name in types])
        return {
            "attention.window": given if slides else None,
            "pattern": pattern or (LayerKind(),),
        }

    def write(config: DecoderConfig, base: Json) -> Json:
        # Without a layer that slides, the window means nothing, but some classes need a number.
        given = config.attention.window or base.get("sliding_window") or window
        return {"layer_types": write_layer_types(config), "sliding_window": given}

    def unsupported(config: DecoderConfig) -> dict[str, bool]:
        others = sorted({str(kind) for kind in config.kinds if kind not in kinds.values()})
        return {f"layers with {' and '.join(others)}": bool(others)}

    return Part(read, write, ("attention.window", "pattern"), unsupported)
