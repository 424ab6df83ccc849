"""Which layers see a sliding window, as Hugging Face's configs say it."""

from collections.abc import Sequence
from typing import Literal

from jaxllm.config import DecoderConfig, LayerKind

from .family import Fields, Json

SEES: dict[str, Literal["all", "window", "chunk"]] = {
    "full_attention": "all",
    "sliding_attention": "window",
    "chunked_attention": "chunk",
}


def shortest(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern that repeats to these kinds of layers."""
    periods = range(1, len(kinds) + 1)
    repeats = lambda p: all(kinds[i] == kinds[i % p] for i in range(len(kinds)))  # noqa: E731
    return tuple(kinds[: next((period for period in periods if repeats(period)), 0)])


def read_layer_types(fields: Fields, default: Sequence[str]) -> list[str]:
    """The field `layer_types`, a known name for each layer; `default` says what absence means."""
    given = fields.take("layer_types", list, list(default))
    count = fields.take("num_hidden_layers", int)
    if unknown := sorted({str(name) for name in given if name not in SEES}):
        fields.problems.append(f"layer_types has {', '.join(unknown)}; known are {', '.join(SEES)}")
        return list(default)
    if len(given) != count:
        fields.problems.append(f"layer_types has {len(given)} names for {count} layers")
        return list(default)
    return given


def read_qwen_windows(fields: Fields) -> Json:
    """The pattern and the window of Qwen's configs: from some layer on, if they are used."""
    count = fields.take("num_hidden_layers", int)
    is_used = fields.take("use_sliding_window", bool, False)
    window = fields.take("sliding_window", int, 4096) if is_used else None
    fields.ignore("sliding_window")
    full = fields.take("max_window_layers", int, 28)
    default = [
        "full_attention" if window is None or i < full else "sliding_attention"
        for i in range(count)
    ]
    types = read_layer_types(fields, default)
    kinds = [LayerKind(sees=SEES[name]) for name in types]
    slides = "sliding_attention" in types
    if slides and window is None:
        fields.problems.append("layer_types slides, but use_sliding_window is false")
    return {"window": window if slides else None, "pattern": shortest(kinds) or (LayerKind(),)}


def write_qwen_windows(config: DecoderConfig) -> Json:
    """The fields of `read_qwen_windows`."""
    types = write_layer_types(config)
    sliding = [i for i, name in enumerate(types) if name == "sliding_attention"]
    return {
        "use_sliding_window": bool(sliding),
        "sliding_window": config.window,
        "max_window_layers": min(sliding, default=config.num_layers),
        "layer_types": types,
    }


def write_layer_types(config: DecoderConfig) -> list[str]:
    """The field `layer_types`."""
    names = {sees: name for name, sees in SEES.items()}
    return [names[kind.sees] for kind in config.kinds]
