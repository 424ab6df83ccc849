"""A stack of layers as frozen data."""

import dataclasses
from typing import ClassVar, get_args

from .parts import (
    Activation,
    Dtype,
    Experts,
    Init,
    LayerKind,
    NormKind,
    NormPlacement,
    Positions,
    QKNorm,
    RelativeBuckets,
    Remat,
    RopeLayout,
    RopeScaling,
    Temperature,
    Waves,
    check_choice,
)


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
    waves: Waves = "power"  # of positions="sinusoidal"
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
            *("waves", "init", "param_dtype", "dtype", "remat"),
        ):
            check_choice(self, name, get_args(StackConfig.__annotations__[name]))
        sizes = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
        for name in (*sizes, "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is less than 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not from 0 to below 1")
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
