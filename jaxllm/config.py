"""The architecture of a model, as frozen data: a config is hashable and says everything."""

import dataclasses
from typing import Any, ClassVar, Literal, get_args

Dtype = Literal["float32", "bfloat16", "float16"]
RopeLayout = Literal["half", "interleaved"]
Remat = Literal["none", "dots", "full"]


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
class DecoderConfig:
    """A decoder-only transformer: pre-norm blocks of grouped-query attention and a gated MLP."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_len: int = 2048  # longest sequence of pretraining; RoPE itself has no limit
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_layout: RopeLayout = "half"  # which two elements of a head are rotated together
    rope_scaling: RopeScaling | None = None
    attn_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    init_std: float = 0.02
    param_dtype: Dtype = "float32"
    dtype: Dtype = "float32"  # of activations; norms, softmax and logits are always float32
    scan_layers: bool = True  # one stacked block, compiled once, instead of num_layers blocks
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all but matmuls, all

    def __post_init__(self) -> None:
        for name in ("rope_layout", "param_dtype", "dtype", "remat"):
            _check_choice(self, name, get_args(type(self).__annotations__[name]))
        sizes = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "mlp_dim", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is less than 1")
        for name in ("norm_eps", "rope_theta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs")


def to_dict(config: DecoderConfig) -> dict[str, Any]:
    """The config as plain data, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any]) -> DecoderConfig:
    """The config that `to_dict` wrote. Unknown or ill-typed fields are a ValueError."""
    from pydantic import TypeAdapter

    return TypeAdapter(DecoderConfig).validate_python(data)


def _check_choice(config: object, name: str, allowed: tuple[str, ...]) -> None:
    if (given := getattr(config, name)) not in allowed:
        raise ValueError(f"{name}={given!r} is not one of {', '.join(allowed)}")
