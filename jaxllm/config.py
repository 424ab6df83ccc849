"""The architecture of a model, as frozen data: a config is hashable and says everything."""

import dataclasses
from typing import Any, ClassVar, Literal, get_args

Dtype = Literal["float32", "bfloat16", "float16"]
RopeLayout = Literal["half", "interleaved"]
Remat = Literal["none", "dots", "full"]
# The root-mean-square norm, its scale applied in the activations' dtype, in float32, or in float32
# after adding one to it; and the layer norm, which has a bias as well.
NormKind = Literal["rms", "rms_float32", "rms_plus_one", "layer"]
# Where a layer's norms stand around a sublayer f: x + f(norm(x)), norm(x + f(x)), x + norm(f(x)),
# x + norm(f(norm(x))), or x + attn(norm(x)) + mlp(norm(x)).
NormPlacement = Literal["pre", "post", "output", "sandwich", "parallel"]
Positions = Literal["rope", "learned", "none"]
# Of queries and keys: each head on its own, or all of a token's heads together, before RoPE; or
# each head without a learned scale after RoPE, on the layers that have RoPE.
QKNorm = Literal["none", "head", "full", "after_rope"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


def _check_choice(config: object, name: str, allowed: tuple[str, ...]) -> None:
    if (given := getattr(config, name)) not in allowed:
        raise ValueError(f"{name}={given!r} is not one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched to contexts longer than those of pretraining.

    `linear` divides every frequency by `factor` (Chen et al., 2023). `llama3` divides only those
    whose wavelength exceeds `original_max_len / low_freq_factor`, keeps those below
    `original_max_len / high_freq_factor`, and blends in between (Llama 3.1).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192

    def __post_init__(self) -> None:
        _check_choice(self, "kind", ("linear", "llama3"))
        for name in ("factor", "original_max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"RopeScaling.{name}={getattr(self, name)} is less than 1")
        if self.low_freq_factor <= 0:
            raise ValueError(f"RopeScaling.low_freq_factor={self.low_freq_factor} is not positive")
        if self.high_freq_factor < self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} is less than "
                f"low_freq_factor={self.low_freq_factor}"
            )


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
    aux_weight: float = 0.0  # of the load-balancing loss in the training loss

    def __post_init__(self) -> None:
        for name in ("scores", "scale"):
            _check_choice(self, name, get_args(type(self).__annotations__[name]))
        for name in ("num_experts", "top_k", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"Experts.{name}={getattr(self, name)} is less than 1")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} is above num_experts={self.num_experts}")


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
class DecoderConfig:
    """A decoder-only transformer. The defaults are Llama's."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_len: int = 2048  # longest sequence of pretraining; learned positions end there
    pattern: tuple[LayerKind, ...] = (LayerKind(),)  # the kinds of layers 0, 1, ...; it repeats

    norm: NormKind = "rms"
    norm_placement: NormPlacement = "pre"
    norm_eps: float = 1e-5
    final_norm: bool = True

    positions: Positions = "rope"
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
    tie_embeddings: bool = False
    logit_softcap: float | None = None

    init_std: float = 0.02
    param_dtype: Dtype = "float32"
    dtype: Dtype = "float32"  # of activations; norms, softmax and logits are always float32
    scan_layers: bool = True  # layers alike are stacked and compiled once
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all but matmuls, all

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    def __post_init__(self) -> None:
        for name in (
            *("norm", "norm_placement", "positions", "rope_layout", "qk_norm", "activation"),
            *("param_dtype", "dtype", "remat"),
        ):
            _check_choice(self, name, get_args(type(self).__annotations__[name]))
        sizes = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "mlp_dim", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is less than 1")
        for name in ("norm_eps", "rope_theta", "local_rope_theta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")
        for name in ("attn_scale", "attn_softcap", "logit_softcap", "window", "chunk"):
            if (given := getattr(self, name)) is not None and given <= 0:
                raise ValueError(f"{name}={given} is not positive")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        self._check_rope()
        self._check_pattern()

    def _check_rope(self) -> None:
        if not 0 < self.rope_fraction <= 1:
            raise ValueError(f"rope_fraction={self.rope_fraction} is not above 0 and up to 1")
        if self.positions == "rope" and int(self.head_dim * self.rope_fraction) % 2:
            rotated = f"head_dim={self.head_dim}"
            if self.rope_fraction != 1:
                rotated += f" times rope_fraction={self.rope_fraction}"
            raise ValueError(f"{rotated} is odd; RoPE rotates pairs")

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


def to_dict(config: DecoderConfig) -> dict[str, Any]:
    """The config as plain data, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any]) -> DecoderConfig:
    """The config that `to_dict` wrote. Unknown or ill-typed fields are a ValueError."""
    from pydantic import TypeAdapter

    return TypeAdapter(DecoderConfig).validate_python(data)
