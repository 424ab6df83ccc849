"""The words of a config, and the parts that it is made of."""

import dataclasses
from typing import ClassVar, Literal, get_args

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
# How the float32 frequencies of sinusoids come about: 1 / 10000 ** (2j / D), or
# exp(-2j ln(10000) / D). They differ in their last bits, and sinusoids at position 128 by 1e-5.
Waves = Literal["power", "exp"]
# How kernels start: normal with `init_std`, or uniform within sqrt(6 / (fan in + fan out)) (Glorot
# and Bengio, 2010). Embeddings are normal, biases 0, norms 1.
Init = Literal["normal", "xavier"]
# Of queries and keys: each head on its own, or all of a token's heads together, before RoPE; or
# each head without a learned scale after RoPE, on the layers that have RoPE.
QKNorm = Literal["none", "head", "full", "after_rope"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "sigmoid"]


def check_choice(config: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError if a field is none of what it may be."""
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
        check_choice(self, "kind", tuple(ROPE_SCALINGS))
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
    # neither times E nor a mean, the sum of each layer's; or times E, that sum of the choices
    # alone that did not find their expert full, by their weights.
    balance: Literal["layer", "model", "sum", "kept"] = "layer"

    def __post_init__(self) -> None:
        for name in ("scores", "scale", "balance"):
            check_choice(self, name, get_args(type(self).__annotations__[name]))
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
            check_choice(self, name, get_args(type(self).__annotations__[name]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBuckets:
    """Distances that share a bias: near ones have one each, far ones ever wider buckets (T5).

    Half of the buckets are for keys before the query, half for those after it; in a causal stack
    all are for those before. Distances from `max_distance` on share the last one.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    count: int = 32
    max_distance: int = 128
