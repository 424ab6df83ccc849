"""Which configs a bug applies to, and to which layer. A layer of -1 means none."""

from collections.abc import Callable

from jaxllm.config import DecoderConfig, flatten

Feature = Callable[[DecoderConfig], bool]
Layer = Callable[[DecoderConfig], int]


def always(config: DecoderConfig) -> bool:
    return True


def has(field: str) -> Feature:
    """Whether a config field, by its dotted name, is set."""
    return lambda config: bool(flatten(config)[field])


def has_not(field: str) -> Feature:
    return lambda config: not flatten(config)[field]


def is_rotated(config: DecoderConfig) -> bool:
    """Whether layout and theta matter: a single pair always rotates by 1 radian per position."""
    return config.positions.kind == "rope" and config.head_dim * config.rope.fraction >= 4


def is_square(config: DecoderConfig) -> bool:
    return config.num_heads * config.head_dim == config.embed_dim


def is_grouped(config: DecoderConfig) -> bool:
    return 1 < config.num_kv_heads < config.num_heads


def has_dense(config: DecoderConfig) -> bool:
    return last_dense(config) >= 0


def is_gated(config: DecoderConfig) -> bool:
    return config.mlp.gated and has_dense(config)


def can_pad_left(config: DecoderConfig) -> bool:
    """Whether left padding means the same in transformers, which counts chunks from its end."""
    return config.attention.chunk is None


def starts_with_norm(config: DecoderConfig) -> bool:
    return config.norms.placement != "output"


def is_rms(config: DecoderConfig) -> bool:
    return config.norms.kind.startswith("rms")


def both(one: Feature, other: Feature) -> Feature:
    return lambda config: one(config) and other(config)


def first(**wanted: str) -> Layer:
    """Returns the first layer of a kind."""
    return lambda config: next(iter(_layers_of_kind(config, wanted)), -1)


def last(**wanted: str) -> Layer:
    """Returns the last layer of a kind, where the noise of all preceding layers accumulates."""
    return lambda config: max(_layers_of_kind(config, wanted), default=-1)


def _layers_of_kind(config: DecoderConfig, wanted: dict[str, str]) -> list[int]:
    return [
        i
        for i, kind in enumerate(config.kinds)
        if all(getattr(kind, name) == word for name, word in wanted.items())
    ]


def first_layer(config: DecoderConfig) -> int:
    return 0


def second_layer(config: DecoderConfig) -> int:
    return 1


def last_rotated(config: DecoderConfig) -> int:
    return last(rope="global")(config) if is_rotated(config) else -1


last_dense = last(mlp="dense")
last_experts = last(mlp="experts")
first_unrotated = first(rope="none")
