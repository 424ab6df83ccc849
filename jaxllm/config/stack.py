"""A stack of layers as frozen data."""

import dataclasses
from typing import ClassVar, Literal

from .attention import AttentionConfig
from .checks import check_choices, check_counts
from .mlp import Experts, MlpConfig
from .norms import NormConfig
from .numerics import InitConfig, NumericsConfig, Remat
from .positions import PositionConfig, RopeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What may differ from one layer of a model to the next."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    sees: Literal["all", "window", "chunk"] = "all"  # of the tokens up to the query's own
    rope: Literal["global", "local", "none"] = "global"  # which frequencies
    mlp: Literal["dense", "experts"] = "dense"

    def __post_init__(self) -> None:
        check_choices(self)


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
    embed_scale: float = 1.0  # of token embeddings

    norms: NormConfig = NormConfig()
    positions: PositionConfig = PositionConfig()
    rope: RopeConfig = RopeConfig()  # for positions.kind="rope"
    attention: AttentionConfig = AttentionConfig()
    mlp: MlpConfig = MlpConfig()
    experts: Experts | None = None  # on layers of mlp="experts"

    dropout: float = 0.0  # in training, of what enters the first layer and the residual stream
    init: InitConfig = InitConfig()
    numerics: NumericsConfig = NumericsConfig()
    scan_layers: bool = True  # layers alike are stacked and compiled once
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all but matmuls, all

    @property
    def longest(self) -> int | None:
        """The longest sequence that there are positions for; None: any."""
        return self.max_len if self.positions.kind in ("learned", "distance") else None

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    def __post_init__(self) -> None:
        check_choices(self)
        sizes = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
        check_counts(self, *sizes, "max_len")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not from 0 to below 1")
        self._check_attention()
        if self.positions.kind == "rope":
            self.rope.check_head(self.head_dim)
        self._check_buckets()
        self._check_pattern()

    def _check_attention(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        qk_norm, placement = self.attention.qk_norm, self.norms.placement
        if self.attention.cross and (qk_norm != "none" or placement == "parallel"):
            raise ValueError(
                f"attention.cross with attention.qk_norm={qk_norm!r} and "
                f"norms.placement={placement!r}: only 'none' and not 'parallel'"
            )

    def _check_buckets(self) -> None:
        """A causal stack has all of its relative buckets before the query, another has half."""
        if self.positions.relative is None:
            return
        count, distance = self.positions.relative.count, self.positions.relative.max_distance
        causal = self.attention.causal
        least = 2 if causal else 4
        if count < least or count % (least // 2):
            raise ValueError(
                f"positions.relative.count={count} is odd or below {least}, with "
                f"attention.causal={causal}"
            )
        if distance <= count // least:
            raise ValueError(
                f"positions.relative.max_distance={distance} is not above the {count // least} "
                "distances that have a bucket each"
            )

    def _check_pattern(self) -> None:
        """What a layer of the pattern needs must be given, and what is given be needed."""
        if not self.pattern:
            raise ValueError("pattern=() names no kind of layer")
        sees = {kind.sees for kind in self.pattern}
        mlps = {kind.mlp for kind in self.pattern}
        for what, is_needed, name, value in (
            ("window", "window" in sees, "attention.window", self.attention.window),
            ("chunk", "chunk" in sees, "attention.chunk", self.attention.chunk),
            ("experts", "experts" in mlps, "experts", self.experts),
        ):
            if is_needed and value is None:
                raise ValueError(f"pattern has layers of {what!r}, but {name} is None")
            if not is_needed and value is not None:
                raise ValueError(f"{name} is given, but pattern has no layer of {what!r}")
