"""Configs of whole models: decoders, encoder-decoders, and models of continuous inputs."""

import dataclasses
from typing import Any, ClassVar, Literal, TypeVar

from jaxllm.errors import UserError

from .checks import check_counts, check_fields, check_positive
from .stack import StackConfig
from .vision import VisionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The output head, which maps hidden states to logits."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["linear", "none"] = "linear"  # "none": the model returns its hidden states
    tied: bool = False  # whether the head shares its weights with the embedding
    bias: bool = False  # whether a learned bias per token is added to the logits
    scale: float = 1.0  # factor of the logits, before the bias
    softcap: float | None = None  # logits become cap * tanh(logit / cap)

    def __post_init__(self) -> None:
        check_fields(self, "head.")
        check_positive(self, "scale", "softcap", prefix="head.")
        if self.kind == "none":
            self._check_unset()

    def _check_unset(self) -> None:
        """Raises ValueError if a setting differs from its default."""
        given = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        if others := [
            f"head.{name}={value!r}"
            for name, (value, default) in given.items()
            if name != "kind" and value != default
        ]:
            raise ValueError(f"head.kind='none' excludes {' and '.join(others)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(StackConfig):
    """A decoder-only transformer, or the decoder of an `EncoderDecoderConfig`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    vocab_size: int
    vision: VisionConfig | None = None  # the image encoder
    head: HeadConfig = HeadConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "vocab_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig(StackConfig):
    """A transformer over continuous inputs: its tokens are vectors, both in and out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    input_dim: int
    output_dim: int
    pooled: bool = False  # one output per sequence, from the mean of its tokens, not one per token

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "input_dim", "output_dim")
        if self.pooled and self.attention.cross:
            raise ValueError(
                "pooled=True cannot be combined with attention.cross=True: set one to False"
            )
        _check_unscaled(self)

    @property
    def longest(self) -> int | None:
        """The longest sequence that the model has positions for; None: no limit.

        Sinusoids end at `max_len` too, as their tables in checkpoints do, unless every layer has a
        limited lookback.
        """
        if self.positions.kind == "sinusoidal" and any(
            kind.attention == "full" for kind in self.kinds
        ):
            return self.max_len
        return super().longest


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """An encoder that reads source tokens, and a decoder of target tokens that attends to it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    encoder: StackConfig
    decoder: DecoderConfig
    source_vocab_size: int | None = None  # None: source and target share one embedding
    # Whether the decoder's learned position embeddings are added to the source as well. The
    # encoder then has none of its own: its positions.kind is "none".
    share_positions: bool = False
    start_token: int | None = None  # first token of a generated target

    @property
    def longest_source(self) -> int | None:
        """The longest source that the model has positions for; None: no limit."""
        return (self.decoder if self.share_positions else self.encoder).longest

    @property
    def vocab_size(self) -> int:
        """The number of target tokens."""
        return self.decoder.vocab_size

    def __post_init__(self) -> None:
        check_fields(self)
        encoder, decoder = self.encoder, self.decoder
        causal = encoder.attention.causal, decoder.attention.causal
        if causal != (False, True):
            raise ValueError(
                f"encoder.attention.causal={causal[0]} and decoder.attention.causal={causal[1]}: "
                "they must be False and True"
            )
        _check_two_stacks(encoder, decoder)
        if self.source_vocab_size is None and encoder.embed_scale != decoder.embed_scale:
            raise ValueError(
                f"embed_scale is {encoder.embed_scale} in the encoder and {decoder.embed_scale} in "
                "the decoder: it must be equal, since they share one embedding"
            )
        shared = encoder.positions.kind, decoder.positions.kind
        if self.share_positions and shared != ("none", "learned"):
            raise ValueError(
                f"share_positions=True with positions.kind={shared[0]!r} in the encoder and "
                f"{shared[1]!r} in the decoder: they must be 'none' and 'learned'"
            )
        check_counts(self, "source_vocab_size")
        if self.start_token is not None and not 0 <= self.start_token < decoder.vocab_size:
            raise ValueError(
                f"start_token={self.start_token} is not a token: it must be at least 0 and below "
                f"vocab_size={decoder.vocab_size}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceToSequenceConfig:
    """An encoder and a decoder over continuous inputs: source and target tokens are vectors."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    encoder: StackConfig
    decoder: SequenceConfig
    source_dim: int  # size of a source token's vector
    share_positions: ClassVar[bool] = False  # each stack has its own positions

    @property
    def longest_source(self) -> int | None:
        """The longest source that the model has positions for; None: no limit."""
        is_sinusoidal = self.encoder.positions.kind == "sinusoidal"
        return self.encoder.max_len if is_sinusoidal else self.encoder.longest

    def __post_init__(self) -> None:
        check_fields(self)
        if self.encoder.attention.causal:
            raise ValueError("encoder.attention.causal=True: it must be False")
        check_counts(self, "source_dim")
        _check_unscaled(self.encoder)
        _check_two_stacks(self.encoder, self.decoder)


def _check_unscaled(config: StackConfig) -> None:
    """Raises ValueError if a model of continuous inputs scales embeddings, which it has none of."""
    if config.embed_scale != 1.0:
        raise ValueError(
            f"embed_scale={config.embed_scale} must be 1.0: vectors are not embedded, so there are "
            "no embeddings to scale"
        )


def _check_two_stacks(encoder: StackConfig, decoder: StackConfig) -> None:
    """Raises ValueError unless the decoder can attend to the encoder's output."""
    if type(encoder) is not StackConfig:
        raise ValueError(
            f"encoder is a {type(encoder).__name__}: it must be a StackConfig, which has no head"
        )
    cross = encoder.attention.cross, decoder.attention.cross
    if cross != (False, True):
        raise ValueError(
            f"encoder.attention.cross={cross[0]} and decoder.attention.cross={cross[1]}: "
            "they must be False and True"
        )
    for name in ("embed_dim", "numerics"):
        if getattr(encoder, name) != getattr(decoder, name):
            raise ValueError(
                f"{name} is {getattr(encoder, name)!r} in the encoder and "
                f"{getattr(decoder, name)!r} in the decoder: it must be equal"
            )


# Configs of models with an encoder and a decoder.
TwoStackConfig = EncoderDecoderConfig | SequenceToSequenceConfig
# Configs of all models.
Config = DecoderConfig | SequenceConfig | TwoStackConfig
AnyConfig = TypeVar("AnyConfig", bound=Config)


def stacks_of(config: Config) -> tuple[StackConfig, ...]:
    """Returns the configs of a model's stacks: of its encoder, if it has one, and its decoder."""
    return (config.encoder, config.decoder) if isinstance(config, TwoStackConfig) else (config,)


def has_head(config: Config) -> bool:
    """Whether a model has an output head; without one it returns its hidden states."""
    last = stacks_of(config)[-1]
    return not isinstance(last, DecoderConfig) or last.head.kind != "none"


def check_has_head(config: Config, purpose: str) -> None:
    """Raises UserError if a model lacks the head that it needs to "generate" or to "train"."""
    if not has_head(config):
        raise UserError(
            f"this model has no head (head.kind='none'), so it cannot {purpose}: it returns the "
            "hidden states of its tokens. Load a checkpoint with a head, or use it for embeddings"
        )


def with_head(config: AnyConfig, *, bias: bool = False) -> AnyConfig:
    """Returns the config with a head.

    Args:
        config: the config.
        bias: whether the head that it is given, tied to the embedding, has a bias.
    """
    changed: Any = config
    if has_head(changed):
        return config
    if isinstance(changed, EncoderDecoderConfig):
        changed = dataclasses.replace(changed, decoder=with_head(changed.decoder, bias=bias))
    else:
        changed = dataclasses.replace(changed, head=HeadConfig(tied=True, bias=bias))
    return changed
