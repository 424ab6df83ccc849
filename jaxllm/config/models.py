"""Whole models as frozen data."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from .parts import Vision
from .stack import StackConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(StackConfig):
    """A decoder-only transformer, or the decoder of an `EncoderDecoderConfig`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    vocab_size: int
    vision: Vision | None = None  # what makes embeddings of images
    tie_embeddings: bool = False
    head_bias: bool = False  # a number for each token, added to its logits
    logit_scale: float = 1.0  # of logits, before the bias
    logit_softcap: float | None = None  # logits become cap * tanh(logit / cap)

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} is less than 1")
        for name in ("logit_scale", "logit_softcap"):
            if (given := getattr(self, name)) is not None and given <= 0:
                raise ValueError(f"{name}={given} is not positive")
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig(StackConfig):
    """A transformer whose tokens are vectors of numbers, in and out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    input_dim: int
    output_dim: int
    pooled: bool = False  # one output for the mean of a sequence's tokens, not one for each token

    def __post_init__(self) -> None:
        for name in ("input_dim", "output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is less than 1")
        if self.pooled and self.cross_attention:
            raise ValueError(f"pooled={self.pooled} with cross_attention={self.cross_attention}")
        _check_unscaled(self)
        super().__post_init__()

    @property
    def longest(self) -> int | None:
        """The longest sequence that it has positions for; None: any.

        Sinusoids end as well, as the tables in checkpoints do, unless every layer looks back a
        limited way.
        """
        if self.positions == "sinusoidal" and any(kind.sees == "all" for kind in self.kinds):
            return self.max_len
        return super().longest


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """An encoder, which reads a source, and a decoder, which writes a target and attends to it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    encoder: StackConfig
    decoder: DecoderConfig
    source_vocab_size: int | None = None  # None: source and target share one embedding
    # Whether the decoder's learned positions are added to the source as well. The encoder, which
    # learns none then, says positions="none".
    share_positions: bool = False
    start_token: int | None = None  # what a target that is generated begins with

    @property
    def longest_source(self) -> int | None:
        """The longest source that there are positions for; None: any."""
        return (self.decoder if self.share_positions else self.encoder).longest

    @property
    def vocab_size(self) -> int:
        """Of the target."""
        return self.decoder.vocab_size

    def __post_init__(self) -> None:
        encoder, decoder = self.encoder, self.decoder
        if encoder.causal or not decoder.causal:
            raise ValueError(
                f"encoder.causal={encoder.causal} and decoder.causal={decoder.causal}, "
                "not False and True"
            )
        _check_two_stacks(encoder, decoder)
        if self.source_vocab_size is None and encoder.embed_scale != decoder.embed_scale:
            raise ValueError(
                f"embed_scale is {encoder.embed_scale} in the encoder, {decoder.embed_scale} in "
                "the decoder, but they share one embedding"
            )
        shared = encoder.positions, decoder.positions
        if self.share_positions and shared != ("none", "learned"):
            raise ValueError(
                f"share_positions with positions {shared[0]!r} in the encoder, {shared[1]!r} in "
                "the decoder, not 'none' and 'learned'"
            )
        if self.source_vocab_size is not None and self.source_vocab_size < 1:
            raise ValueError(f"source_vocab_size={self.source_vocab_size} is less than 1")
        if self.start_token is not None and not 0 <= self.start_token < decoder.vocab_size:
            raise ValueError(
                f"start_token={self.start_token} is not of vocab_size={decoder.vocab_size}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceToSequenceConfig:
    """An encoder and a decoder whose tokens, of source and target, are vectors of numbers."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    encoder: StackConfig
    decoder: SequenceConfig
    source_dim: int  # numbers in a token of the source
    share_positions: ClassVar[bool] = False  # each stack has its own

    @property
    def longest_source(self) -> int | None:
        """The longest source that there are positions for; None: any."""
        is_sinusoidal = self.encoder.positions == "sinusoidal"
        return self.encoder.max_len if is_sinusoidal else self.encoder.longest

    def __post_init__(self) -> None:
        if self.encoder.causal:
            raise ValueError(f"encoder.causal={self.encoder.causal}, not False")
        if self.source_dim < 1:
            raise ValueError(f"source_dim={self.source_dim} is less than 1")
        _check_unscaled(self.encoder)
        _check_two_stacks(self.encoder, self.decoder)


def _check_unscaled(config: StackConfig) -> None:
    """Vectors come as they are: only embeddings of tokens are scaled."""
    if config.embed_scale != 1.0:
        raise ValueError(f"embed_scale={config.embed_scale} without embeddings, not 1.0")


def _check_two_stacks(encoder: StackConfig, decoder: StackConfig) -> None:
    """The decoder attends to the encoder's output, which must be of its kind."""
    if type(encoder) is not StackConfig:
        raise ValueError(f"encoder is a {type(encoder).__name__}, but it has no head: StackConfig")
    if encoder.cross_attention or not decoder.cross_attention:
        raise ValueError(
            f"encoder.cross_attention={encoder.cross_attention} and "
            f"decoder.cross_attention={decoder.cross_attention}, not False and True"
        )
    for name in ("embed_dim", "param_dtype", "dtype"):
        if getattr(encoder, name) != getattr(decoder, name):
            raise ValueError(
                f"{name} is {getattr(encoder, name)!r} in the encoder, "
                f"{getattr(decoder, name)!r} in the decoder"
            )


TwoStackConfig = EncoderDecoderConfig | SequenceToSequenceConfig
Config = DecoderConfig | SequenceConfig | TwoStackConfig
AnyConfig = TypeVar("AnyConfig", bound=StackConfig | TwoStackConfig)


def config_class(values: Mapping[str, Any]) -> type[Config]:
    """The class that has fields of these names."""
    if "encoder" in values:
        return SequenceToSequenceConfig if "source_dim" in values else EncoderDecoderConfig
    return SequenceConfig if "input_dim" in values else DecoderConfig


def make_config(values: Mapping[str, Any], **both: Any) -> Config:
    """The config of these fields: of one stack, or of an encoder and a decoder by those names.

    `both` are fields of the one stack, or of both.
    """
    kind = config_class(values)
    if "encoder" not in values:
        return kind(**values, **both)
    encoder = StackConfig(**values["encoder"], **both)
    decoder = config_class(values["decoder"])(**values["decoder"], **both)
    return kind(**{**values, "encoder": encoder, "decoder": decoder})


def with_fields(config: AnyConfig, **changes: Any) -> AnyConfig:
    """The config with fields of its stack, or of both its stacks, changed."""
    if isinstance(config, TwoStackConfig):
        encoder = dataclasses.replace(config.encoder, **changes)
        changes = {"encoder": encoder, "decoder": dataclasses.replace(config.decoder, **changes)}
    return dataclasses.replace(config, **changes)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain data, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any]) -> Config:
    """The config that `to_dict` wrote. Unknown or ill-typed fields are a ValueError."""
    from pydantic import TypeAdapter

    config: Config = TypeAdapter(config_class(data)).validate_python(data)
    return config
