"""The architecture of a model, as frozen data: a config is hashable and says everything."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar, get_args

Dtype = Literal["float32", "bfloat16", "float16"]
RopeLayout = Literal["half", "interleaved"]
Remat = Literal["none", "dots", "full"]
# The root-mean-square norm, its scale applied in the activations' dtype, in float32, or in float32
# after adding one to it; and the layer norm, which has a bias as well.
NormKind = Literal["rms", "rms_float32", "rms_plus_one", "layer"]
# Where a layer's norms stand around a sublayer f: x + f(norm(x)), norm(x + f(x)), x + norm(f(x)),
# x + norm(f(norm(x))), or x + attn(norm(x)) + mlp(norm(x)).
NormPlacement = Literal["pre", "post", "output", "sandwich", "parallel"]
# How a stack knows where its tokens stand: queries and keys are rotated, a vector is added to each
# token, or scores change with the distance of query and key: by a slope (Press et al., 2022), by
# numbers that all layers learn for buckets of distances (T5), or by those that each layer learns
# for each distance, ahead and behind.
Positions = Literal["rope", "learned", "sinusoidal", "alibi", "relative", "distance", "none"]
# How kernels start: normal with `init_std`, or uniform within sqrt(6 / (fan in + fan out)) (Glorot
# and Bengio, 2010). Embeddings are normal, biases 0, norms 1.
Init = Literal["normal", "xavier"]
# Of queries and keys: each head on its own, or all of a token's heads together, before RoPE; or
# each head without a learned scale after RoPE, on the layers that have RoPE.
QKNorm = Literal["none", "head", "full", "after_rope"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "sigmoid"]


def _check_choice(config: object, name: str, allowed: tuple[str, ...]) -> None:
    if (given := getattr(config, name)) not in allowed:
        raise ValueError(f"{name}={given!r} is not one of {', '.join(allowed)}")


# The fields of each kind of RopeScaling besides `factor`.
ROPE_SCALINGS = {
    "linear": (),
    "dynamic": ("original_max_len",),
    "llama3": ("original_max_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_len", "attention_factor", "beta_fast", "beta_slow", "truncate"),
    "longrope": ("original_max_len", "attention_factor", "short_factor", "long_factor"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched to contexts longer than those of pretraining.

    `linear` divides every frequency by `factor` (Chen et al., 2023). `llama3` divides only those
    whose wavelength exceeds `original_max_len / low_freq_factor`, keeps those below
    `original_max_len / high_freq_factor`, and blends in between (Llama 3.1). `yarn` divides those
    of fewer than `beta_slow` turns in `original_max_len`, keeps those of more than `beta_fast`,
    and blends in between (Peng et al., 2023). `dynamic` does nothing to a sequence up to
    `original_max_len` and grows theta with the length of a longer one ("NTK"). `longrope` divides
    each frequency by its own number, of `short_factor` up to that length and of `long_factor`
    beyond (Ding et al., 2024).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float
    original_max_len: int = 8192
    attention_factor: float | None = None  # of cosines and sines; None: as the kind's paper says
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # whether the blend starts and ends at whole pairs
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_choice(self, "kind", tuple(ROPE_SCALINGS))
        self._check_kind()
        for name in ("factor", "original_max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"RopeScaling.{name}={getattr(self, name)} is less than 1")
        for name in ("low_freq_factor", "beta_slow", "attention_factor"):
            if (given := getattr(self, name)) is not None and given <= 0:
                raise ValueError(f"RopeScaling.{name}={given} is not positive")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, high) < getattr(self, low):
                raise ValueError(
                    f"{high}={getattr(self, high)} is less than {low}={getattr(self, low)}"
                )
        self._check_longrope()

    def _check_kind(self) -> None:
        """What is given must be of this kind."""
        ours = {"kind", "factor", *ROPE_SCALINGS[self.kind]}
        for field in dataclasses.fields(self):
            if field.name not in ours and getattr(self, field.name) != field.default:
                given = f"{field.name}={getattr(self, field.name)}"
                raise ValueError(f"{given} is given, but kind={self.kind!r} has no such field")

    def _check_longrope(self) -> None:
        if self.kind != "longrope":
            return
        if self.original_max_len < 2:  # its logarithm divides
            raise ValueError(f"RopeScaling.original_max_len={self.original_max_len} is less than 2")
        short, long = len(self.short_factor), len(self.long_factor)
        if short != long or not short:
            raise ValueError(f"short_factor has {short} numbers, long_factor {long}")
        if min(*self.short_factor, *self.long_factor) <= 0:
            raise ValueError("short_factor or long_factor has a number that is not positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temperature:
    """Queries grow with their position p, by `1 + scale * ln(1 + floor((p + 1) / floor_scale))`.

    On the layers without RoPE, which have nothing else to tell near from far (Llama 4).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    scale: float = 0.1
    floor_scale: float = 8192.0

    def __post_init__(self) -> None:
        if self.floor_scale <= 0:
            raise ValueError(f"Temperature.floor_scale={self.floor_scale} is not positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP (Shazeer et al., 2017)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    num_experts: int
    top_k: int  # experts that each token goes to
    mlp_dim: int  # of each expert
    # How logits become weights: softmax over all experts, or a sigmoid of each chosen one.
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = False  # whether the weights of the chosen sum to 1
    scale: Literal["output", "input"] = "output"  # of the experts, by those weights
    shared_mlp_dim: int | None = None  # of an expert that every token also goes to
    router_bias: bool = False
    # Tokens of a call that an expert takes, the first that chose it; an overflow expert takes the
    # others with the same weight. None: each takes all.
    capacity: int | None = None
    aux_weight: float = 0.0  # of the load-balancing loss in the training loss
    # That loss: times E, the mean of each layer's or that of all layers' tokens together; or
    # neither times E nor a mean, the sum of each layer's.
    balance: Literal["layer", "model", "sum"] = "layer"

    def __post_init__(self) -> None:
        for name in ("scores", "scale", "balance"):
            _check_choice(self, name, get_args(type(self).__annotations__[name]))
        for name in ("num_experts", "top_k", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"Experts.{name}={getattr(self, name)} is less than 1")
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"Experts.capacity={self.capacity} is less than 1")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} is above num_experts={self.num_experts}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """An encoder of square images, whose outputs stand in for embeddings of tokens (Llama 4)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    image_size: int  # pixels of a side
    patch_size: int
    num_channels: int = 3
    embed_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    output_dim: int
    shuffle: int = 2  # patches of a side that become one embedding
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    image_token: int | None = None  # the token that holds the place of an embedding

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if field.name != "image_token" and given <= 0:
                raise ValueError(f"Vision.{field.name}={given} is not positive")
        if self.image_size % (self.patch_size * self.shuffle):
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size} "
                f"times shuffle={self.shuffle}"
            )
        if self.embed_dim % (4 * self.num_heads):  # a column and a row rotate pairs of each head
            raise ValueError(
                f"embed_dim={self.embed_dim} is not num_heads={self.num_heads} heads of a "
                "multiple of 4"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What may differ from one layer of a model to the next."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    sees: Literal["all", "window", "chunk"] = "all"  # of the tokens up to the query's own
    rope: Literal["global", "local", "none"] = "global"  # which frequencies
    mlp: Literal["dense", "experts"] = "dense"

    def __post_init__(self) -> None:
        for name in ("sees", "rope", "mlp"):
            _check_choice(self, name, get_args(type(self).__annotations__[name]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBuckets:
    """Distances that share a bias: near ones have one each, far ones ever wider buckets (T5).

    Half of the buckets are for keys before the query, half for those after it; in a causal stack
    all are for those before. Distances from `max_distance` on share the last one.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    count: int = 32
    max_distance: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of transformer layers, from embeddings to hidden states. The defaults are Llama's."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_len: int = 2048  # longest sequence of pretraining; learned positions, distances end there
    pattern: tuple[LayerKind, ...] = (LayerKind(),)  # the kinds of layers 0, 1, ...; it repeats

    norm: NormKind = "rms"
    norm_placement: NormPlacement = "pre"
    norm_eps: float = 1e-5
    embed_norm: bool = False  # of what the first layer is given
    final_norm: bool = True
    final_norm_eps: float | None = None  # None: norm_eps

    causal: bool = True  # tokens see none after themselves
    cross_attention: bool = False  # every layer also attends to an encoder's output

    positions: Positions = "rope"
    position_offset: int = 0  # rows of a learned table before that of position 0
    relative: RelativeBuckets | None = None  # of positions="relative"
    rope_theta: float = 10000.0
    local_rope_theta: float = 10000.0  # on layers of rope="local", where nothing is scaled
    rope_fraction: float = 1.0  # of a head's elements; the others are not rotated
    rope_layout: RopeLayout = "half"  # which two elements of a head are rotated together
    rope_scaling: RopeScaling | None = None

    qkv_bias: bool = False
    attn_out_bias: bool = False
    qk_norm: QKNorm = "none"
    attn_scale: float | None = None  # of scores; None: 1 / sqrt(head_dim)
    attn_softcap: float | None = None  # scores become cap * tanh(score / cap)
    attn_temperature: Temperature | None = None
    window: int | None = None  # tokens seen on layers of sees="window", the query's own included
    chunk: int | None = None  # on layers of sees="chunk", tokens see their own chunk of this many

    activation: Activation = "silu"
    gated_mlp: bool = True  # down(act(gate(x)) * up(x)), not down(act(up(x)))
    mlp_bias: bool = False
    experts: Experts | None = None  # on layers of mlp="experts"

    embed_scale: float = 1.0  # of token embeddings

    dropout: float = 0.0  # in training, of what enters the first layer and the residual stream
    init: Init = "normal"
    init_std: float = 0.02
    param_dtype: Dtype = "float32"
    dtype: Dtype = "float32"  # of activations; norms, softmax and logits are always float32
    scan_layers: bool = True  # layers alike are stacked and compiled once
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all but matmuls, all

    @property
    def longest(self) -> int | None:
        """The longest sequence that it has positions for; None: any."""
        return self.max_len if self.positions in ("learned", "distance") else None

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    def __post_init__(self) -> None:
        for name in (
            *("norm", "norm_placement", "positions", "rope_layout", "qk_norm", "activation"),
            *("init", "param_dtype", "dtype", "remat"),
        ):
            _check_choice(self, name, get_args(StackConfig.__annotations__[name]))
        sizes = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
        for name in (*sizes, "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is less than 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not from 0 to below 1")
        if self.init != "normal" and self.experts is not None:
            raise ValueError(f"init={self.init!r} with experts={self.experts}: only 'normal'")
        for name in ("norm_eps", "rope_theta", "local_rope_theta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")
        for name in ("attn_scale", "attn_softcap", "final_norm_eps", "window", "chunk"):
            if (given := getattr(self, name)) is not None and given <= 0:
                raise ValueError(f"{name}={given} is not positive")
        self._check_heads()
        self._check_positions()
        self._check_rope()
        self._check_pattern()

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.cross_attention and (self.qk_norm != "none" or self.norm_placement == "parallel"):
            raise ValueError(
                f"cross_attention with qk_norm={self.qk_norm!r} and "
                f"norm_placement={self.norm_placement!r}: only 'none' and not 'parallel'"
            )

    def _check_positions(self) -> None:
        if self.position_offset < 0:
            raise ValueError(f"position_offset={self.position_offset} is negative")
        if self.position_offset and self.positions != "learned":
            raise ValueError(
                f"position_offset={self.position_offset} is for positions='learned', "
                f"not {self.positions!r}"
            )
        if (self.relative is not None) != (self.positions == "relative"):
            raise ValueError(f"relative={self.relative} with positions={self.positions!r}")
        if self.relative is None:
            return
        count, distance = self.relative.count, self.relative.max_distance
        least = 2 if self.causal else 4
        if count < least or count % (least // 2):
            raise ValueError(
                f"relative.count={count} is odd or below {least}, with causal={self.causal}"
            )
        if distance <= count // least:
            raise ValueError(
                f"relative.max_distance={distance} is not above the {count // least} distances "
                "that have a bucket each"
            )

    def _check_rope(self) -> None:
        if not 0 < self.rope_fraction <= 1:
            raise ValueError(f"rope_fraction={self.rope_fraction} is not above 0 and up to 1")
        if self.positions != "rope":
            return
        if int(self.head_dim * self.rope_fraction) % 2:
            rotated = f"head_dim={self.head_dim}"
            if self.rope_fraction != 1:
                rotated += f" times rope_fraction={self.rope_fraction}"
            raise ValueError(f"{rotated} is odd; RoPE rotates pairs")
        if self.rope_scaling is not None:
            self._check_rope_scaling(self.rope_scaling)

    def _check_rope_scaling(self, scaling: RopeScaling) -> None:
        pairs, given = int(self.head_dim * self.rope_fraction) // 2, len(scaling.short_factor)
        if scaling.kind == "longrope" and given != pairs:
            raise ValueError(f"short_factor has {given} numbers for {pairs} rotated pairs")
        if scaling.kind == "dynamic" and pairs < 2:  # theta grows by a power of d / (d - 2)
            raise ValueError(f"dynamic RoPE scaling of {pairs} rotated pairs, not 2 or more")

    def _check_pattern(self) -> None:
        """What a layer of the pattern needs must be given, and what is given be needed."""
        if not self.pattern:
            raise ValueError("pattern=() names no kind of layer")
        needs = {
            "window": any(kind.sees == "window" for kind in self.pattern),
            "chunk": any(kind.sees == "chunk" for kind in self.pattern),
            "experts": any(kind.mlp == "experts" for kind in self.pattern),
        }
        for name, is_needed in needs.items():
            if is_needed and getattr(self, name) is None:
                raise ValueError(f"pattern has layers of {name!r}, but {name} is None")
            if not is_needed and getattr(self, name) is not None:
                raise ValueError(f"{name} is given, but pattern has no layer of {name!r}")


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
AnyConfig = TypeVar("AnyConfig", bound=Config)


def _class_of(values: Mapping[str, Any]) -> type[Config]:
    """The class that has fields of these names."""
    if "encoder" in values:
        return SequenceToSequenceConfig if "source_dim" in values else EncoderDecoderConfig
    return SequenceConfig if "input_dim" in values else DecoderConfig


def make_config(values: Mapping[str, Any], **both: Any) -> Config:
    """The config of these fields: of one stack, or of an encoder and a decoder by those names.

    `both` are fields of the one stack, or of both.
    """
    kind = _class_of(values)
    if "encoder" not in values:
        return kind(**values, **both)
    encoder = StackConfig(**values["encoder"], **both)
    decoder = _class_of(values["decoder"])(**values["decoder"], **both)
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

    config: Config = TypeAdapter(_class_of(data)).validate_python(data)
    return config
