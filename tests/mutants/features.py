"""What a config has that a bug is of, and the layers that have it. No layer is -1."""

from collections.abc import Callable

from jaxllm.config import DecoderConfig, flatten

Feature = Callable[[DecoderConfig], bool]
Layer = Callable[[DecoderConfig], int]


def always(config: DecoderConfig) -> bool:
    return True


def has(field: str) -> Feature:
    """Whether the config gives a field, by its dotted name."""
    return lambda config: bool(flatten(config)[field])


def has_not(field: str) -> Feature:
    return lambda config: not flatten(config)[field]


def is_rotated(config: DecoderConfig) -> bool:
    """Whether layout and theta matter: a single pair turns by 1, whatever they are."""
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
    """Whether padding before a row means the same to transformers, which counts chunks after it."""
    return config.attention.chunk is None


def starts_with_norm(config: DecoderConfig) -> bool:
    return config.norms.placement != "output"


def is_rms(config: DecoderConfig) -> bool:
    return config.norms.kind.startswith("rms")


def both(one: Feature, other: Feature) -> Feature:
    return lambda config: one(config) and other(config)


def first(**wanted: str) -> Layer:
    """The first layer of a kind."""
    return lambda config: next(iter(_alike(config, wanted)), -1)


def last(**wanted: str) -> Layer:
    """The last layer of a kind: a bug there has the noise of all the others before it."""
    return lambda config: max(_alike(config, wanted), default=-1)


def _alike(config: DecoderConfig, wanted: dict[str, str]) -> list[int]:
    return [
        i
        for i, kind in enumerate(config.kinds)
        if all(getattr(kind, name) == word for name, word in wanted.items())
    ]


def foremost(config: DecoderConfig) -> int:
    return 0


def second(config: DecoderConfig) -> int:
    return 1


def last_rotated(config: DecoderConfig) -> int:
    return last(rope="global")(config) if is_rotated(config) else -1


last_dense = last(mlp="dense")
last_experts = last(mlp="experts")
first_unrotated = first(rope="none")
