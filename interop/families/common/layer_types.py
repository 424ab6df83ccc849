"""Per-layer attention kinds in Hugging Face configs: full, sliding window, chunked, no RoPE."""

from collections.abc import Collection, Sequence
from typing import Literal

from jaxllm.config import DecoderConfig, LayerKind

from .fields import Fields, Json

ATTENTION: dict[str, Literal["full", "window", "chunk"]] = {
    "full_attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "chunk",
}


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """Returns the shortest pattern that, repeated, gives these layer kinds."""
    periods = range(1, len(kinds) + 1)
    repeats = lambda p: all(kinds[i] == kinds[i % p] for i in range(len(kinds)))  # noqa: E731
    return tuple(kinds[: next((period for period in periods if repeats(period)), 0)])


def read_layer_types(
    fields: Fields, default: Sequence[str], known: Collection[str] = ATTENTION
) -> list[str]:
    """Reads `layer_types`, one known name per layer, or returns `default` if it is absent."""
    given = fields.take("layer_types", list, list(default))
    count = fields.take("num_hidden_layers", int)
    if unknown := sorted({str(name) for name in given if name not in known}):
        fields.problems.append(
            f"layer_types has {', '.join(unknown)}; allowed are {', '.join(known)}"
        )
        return list(default)
    if len(given) != count:
        fields.problems.append(f"layer_types has {len(given)} names for {count} layers")
        return list(default)
    return given


def read_qwen_windows(fields: Fields) -> Json:
    """Reads Qwen's sliding window, used from layer `max_window_layers` on if it is enabled."""
    count = fields.take("num_hidden_layers", int)
    is_used = fields.take("use_sliding_window", bool, False)
    window = fields.take_nullable("sliding_window", int, 4096)
    window = window if is_used else None
    full = fields.take("max_window_layers", int, 28)
    default = [
        "full_attention" if window is None or i < full else "sliding_attention"
        for i in range(count)
    ]
    types = read_layer_types(fields, default)
    kinds = [LayerKind(attention=ATTENTION[name]) for name in types]
    slides = "sliding_attention" in types
    if slides and window is None:
        fields.problems.append("layer_types has sliding_attention, but use_sliding_window is false")
    return {
        "attention.window": window if slides else None,
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
    }


def write_qwen_windows(config: DecoderConfig) -> Json:
    """Writes the fields of `read_qwen_windows`."""
    types = write_layer_types(config)
    sliding = [i for i, name in enumerate(types) if name == "sliding_attention"]
    return {
        "use_sliding_window": bool(sliding),
        "sliding_window": config.attention.window,
        "max_window_layers": min(sliding, default=config.num_layers),
        "layer_types": types,
    }


def write_layer_types(config: DecoderConfig) -> list[str]:
    """Returns the field `layer_types`."""
    names: dict[str, str] = {attention: name for name, attention in ATTENTION.items()}
    return [names[kind.attention] for kind in config.kinds]


def read_uniform_window(
    fields: Fields, default: int | None = None, mlp: Literal["dense", "experts"] = "dense"
) -> Json:
    """Reads the sliding window of all layers, or null; caches of transformers read `layer_types`.

    Args:
        fields: the config file.
        default: the window if the field is absent.
        mlp: the kind of MLP that every layer has.
    """
    window = fields.take_nullable("sliding_window", int, default)
    require_layer_types(fields, "full_attention" if window is None else "sliding_attention")
    kind = LayerKind(attention="full" if window is None else "window", mlp=mlp)
    return {"attention.window": window, "pattern": (kind,)}


def require_full_attention(fields: Fields) -> None:
    """Checks the fields that the caches of transformers read although the model has no windows.

    A window that holds the longest context is none.
    """
    require_layer_types(fields, "full_attention")
    window = fields.take_nullable("sliding_window", int, None)
    usual = fields.default("max_position_embeddings")
    if window is not None and window < fields.take("max_position_embeddings", int, usual):
        fields.require("sliding_window", None)


def require_layer_types(fields: Fields, name: str) -> None:
    """Checks that `layer_types`, if given, has this name for every layer."""
    fields.require("layer_types", None, [name] * fields.take("num_hidden_layers", int))


def unsupported_by_one_window(config: DecoderConfig) -> dict[str, bool]:
    """Flags configs with a window on only some layers."""
    return {"a window on only some layers": len({kind.attention for kind in config.kinds}) > 1}


def unsupported_layers(config: DecoderConfig, **supported: Sequence[str]) -> dict[str, bool]:
    """Flags layer kinds whose fields have values other than the supported ones."""
    return {
        f"layers with {field}={value!r}": value not in values
        for field, values in supported.items()
        for value in sorted({getattr(kind, field) for kind in config.kinds})
    }


def read_nope_layers(fields: Fields, count: int) -> set[int]:
    """Reads which layers have no RoPE: `no_rope_layers` holds a 1 for each layer with RoPE."""
    given = fields.take("no_rope_layers", list, [])
    interval = fields.take("no_rope_layer_interval", int, 4)
    if not given:
        return set(range(interval - 1, count, interval)) if interval > 0 else set()
    if len(given) < count or any(has_rope not in (0, 1) for has_rope in given):
        fields.problems.append(f"no_rope_layers={given!r} must hold a 0 or 1 for each layer")
    return {i for i, has_rope in enumerate(given) if not has_rope}


def write_nope_layers(config: DecoderConfig) -> list[int]:
    """Returns the field `no_rope_layers`: 1 for each layer with RoPE, else 0."""
    return [int(kind.rope != "none") for kind in config.kinds]
