"""Whole models as frozen data."""

import dataclasses
from typing import ClassVar

from .checks import check_counts, check_positive
from .stack import StackConfig
from .vision import Vision


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How hidden states become logits."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    tied: bool = False  # whether the head's kernel is the embedding
    bias: bool = False  # a number for each token, added to its logits
    scale: float = 1.0  # of logits, before the bias
    softcap: float | None = None  # logits become cap * tanh(logit / cap)

    def __post_init__(self) -> None:
        check_positive(self, "scale", "softcap", prefix="head.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(StackConfig):
    """A decoder-only transformer, or the decoder of an `EncoderDecoderConfig`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    vocab_size: int
    vision: Vision | None = None  # what makes embeddings of images
    head: HeadConfig = HeadConfig()

    def __post_init__(self) -> None:
        check_counts(self, "vocab_size")
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig(StackConfig):
    """A transformer whose tokens are vectors of numbers, in and out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    input_dim: int
    output_dim: int
    pooled: bool = False  # one output for the mean of a sequence's tokens, not one for each token

    def __post_init__(self) -> None:
        check_counts(self, "input_dim", "output_dim")
        if self.pooled and self.attention.cross:
            raise ValueError(f"pooled={self.pooled} with attention.cross={self.attention.cross}")
        _check_unscaled(self)
        super().__post_init__()

    @property
    def longest(self) -> int | None:
        """The longest sequence that it has positions for; None: any.

        Sinusoids end as well, as the tables in checkpoints do, unless every layer looks back a
        limited way.
        """
        if self.positions.kind == "sinusoidal" and any(kind.sees == "all" for kind in self.kinds):
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
    # learns none then, says positions.kind="none".
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
        causal = encoder.attention.causal, decoder.attention.causal
        if causal != (False, True):
            raise ValueError(
                f"encoder.attention.causal={causal[0]} and decoder.attention.causal={causal[1]}, "
                "not False and True"
            )
        _check_two_stacks(encoder, decoder)
        if self.source_vocab_size is None and encoder.embed_scale != decoder.embed_scale:
            raise ValueError(
                f"embed_scale is {encoder.embed_scale} in the encoder, {decoder.embed_scale} in "
                "the decoder, but they share one embedding"
            )
        shared = encoder.positions.kind, decoder.positions.kind
        if self.share_positions and shared != ("none", "learned"):
            raise ValueError(
                f"share_positions with positions.kind {shared[0]!r} in the encoder, {shared[1]!r} "
                "in the decoder, not 'none' and 'learned'"
            )
        check_counts(self, "source_vocab_size")
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
        is_sinusoidal = self.encoder.positions.kind == "sinusoidal"
        return self.encoder.max_len if is_sinusoidal else self.encoder.longest

    def __post_init__(self) -> None:
        if self.encoder.attention.causal:
            raise ValueError("encoder.attention.causal=True, not False")
        check_counts(self, "source_dim")
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
    cross = encoder.attention.cross, decoder.attention.cross
    if cross != (False, True):
        raise ValueError(
            f"encoder.attention.cross={cross[0]} and decoder.attention.cross={cross[1]}, "
            "not False and True"
        )
    for name in ("embed_dim", "numerics"):
        if getattr(encoder, name) != getattr(decoder, name):
            raise ValueError(
                f"{name} is {getattr(encoder, name)!r} in the encoder, "
                f"{getattr(decoder, name)!r} in the decoder"
            )


TwoStackConfig = EncoderDecoderConfig | SequenceToSequenceConfig
Config = DecoderConfig | SequenceConfig | TwoStackConfig
