"""Arguments of `LLM`, which include those of Meta's Llama 3 and 4 (`params.json`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEArgs:
    """Settings of a mixture of experts in the feed-forward part of a block."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    num_experts: int
    capacity_factor: float = 1.0  # affects only the width: no token is dropped
    auto_scale_F: bool = True  # so that a token costs the same as in a dense block
    top_k: int = 1
    interleave_moe_layer_step: int = 1  # every n-th layer has experts

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"top_k={self.top_k} is not between 1 and num_experts={self.num_experts}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """The size of an image or a patch in pixels."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    height: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionArgs:
    """Settings of the image encoder and its adapter."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    image_size: Size
    patch_size: Size
    dim: int
    n_layers: int
    n_heads: int
    mlp_ratio: float
    output_dim: int
    pixel_shuffle_ratio: float

    def __post_init__(self) -> None:
        if self.dim % (4 * self.n_heads):
            raise ValueError(
                f"dim={self.dim} does not split into n_heads={self.n_heads} heads of a width "
                "divisible by 4"
            )
        for side in ("height", "width"):
            image, patch = getattr(self.image_size, side), getattr(self.patch_size, side)
            if image % patch:
                raise ValueError(f"image {side} {image} is not a multiple of patch {side} {patch}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """Sizes and switches of an `LLM`. Raises ValueError if they are inconsistent."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None  # None: n_heads
    head_dim: int | None = None  # None or dim / n_heads; nothing else is allowed
    vocab_size: int
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    ffn_exp: float = 4.0  # width of an expert network before reduction, in units of dim
    norm_eps: float = 1e-5
    attention_chunk_size: int | None = None
    rope_theta: float = 500000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float = 16.0  # Llama 3.1: 8
    rope_high_freq_factor: float = 1.0  # Llama 3.1: 4
    nope_layer_interval: int | None = None  # every n-th layer has no positions
    use_qk_norm: bool = False
    attn_temperature_tuning: bool = False
    floor_scale: float = 8192.0
    attn_scale: float = 0.1
    vision_args: VisionArgs | None = None
    moe_args: MoEArgs | None = None
    batch_size: int = 32
    max_seq_len: int = 2048

    def __post_init__(self) -> None:
        if self.dim % (2 * self.n_heads):
            raise ValueError(
                f"dim={self.dim} does not split into n_heads={self.n_heads} heads of even width"
            )
        if self.head_dim not in (None, self.dim // self.n_heads):
            raise ValueError(
                f"head_dim={self.head_dim} is not dim / n_heads = {self.dim // self.n_heads}"
            )
        if self.n_heads % self.num_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}"
            )

    @property
    def num_kv_heads(self) -> int:
        """The number of key/value heads, K."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Reads a `config.json` or `params.json`, where null means the default.

        Raises ValueError for an unknown name.
        """
        from pydantic import TypeAdapter

        given = {name: value for name, value in fields.items() if value is not None}
        return TypeAdapter(cls).validate_python(given)
