"""Config of a stack of transformer layers."""

import dataclasses
import warnings
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .attention import AttentionConfig
from .checks import check_counts, check_fields
from .mlp import ExpertsConfig, MlpConfig
from .moved import MOVED
from .norms import NormConfig
from .numerics import InitConfig, NumericsConfig, Remat
from .positions import PositionConfig, RopeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerKind:
    """The settings that may differ between the layers of a stack."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    # Which tokens a query may attend to: all, a sliding window of them, or its own chunk; or a
    # gated DeltaNet in place of attention, which carries a state from token to token.
    attention: Literal["full", "window", "chunk", "delta"] = "full"
    rope: Literal["global", "local", "none"] = "global"  # theta, local_theta, or no RoPE
    mlp: Literal["dense", "experts"] = "dense"

    def __post_init__(self) -> None:
        check_fields(self)


MOST_UNSCANNED = 1000  # layers; time and memory of a program grow with their number


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of transformer layers, from embeddings to hidden states; defaults as in Llama."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    # Longest sequence of pretraining, and the limit of learned positions and distance biases.
    max_len: int = 2048
    # Kinds of layers 0, 1, ...; the pattern repeats.
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    embed_scale: float = 1.0  # factor of the token embeddings
    residual_scale: float = 1.0  # factor of every sublayer's output

    norms: NormConfig = NormConfig()
    positions: PositionConfig = PositionConfig()
    rope: RopeConfig = RopeConfig()  # for positions.kind="rope"
    attention: AttentionConfig = AttentionConfig()
    mlp: MlpConfig = MlpConfig()
    experts: ExpertsConfig | None = None  # on layers of mlp="experts"

    # Rate in training, for the first layer's input and every sublayer's output.
    dropout: float = 0.0
    init: InitConfig = InitConfig()
    numerics: NumericsConfig = NumericsConfig()
    scan_layers: bool = True  # whether layers of the same kind are stacked and compiled once
    remat: Remat = "none"  # what the backward pass recomputes

    if not TYPE_CHECKING:  # type checkers know the current names alone

        def __getattr__(self, name: str) -> Any:
            """Returns a field by its old name, as in `config.rope_scaling`, with a warning."""
            if name not in MOVED:
                raise AttributeError(f"{type(self).__name__} has no field {name!r}")
            warnings.warn(f"{name} is now {MOVED[name]}", DeprecationWarning, stacklevel=2)
            return attrgetter(MOVED[name])(self)

    @property
    def rope_dim(self) -> int:
        """The elements of a head of which RoPE rotates a fraction."""
        latent = self.attention.latent
        return self.head_dim if latent is None else latent.rope_dim

    @property
    def value_dim(self) -> int:
        """The elements of a head's values."""
        latent = self.attention.latent
        return self.head_dim if latent is None else latent.value_dim

    @property
    def longest(self) -> int | None:
        """The longest sequence that the stack has positions for; None: no limit."""
        return self.max_len if self.positions.kind in ("learned", "distance") else None

    @property
    def longest_trained(self) -> int | None:
        """The longest sequence that RoPE was trained on; None: no layer has RoPE.

        Dynamic scaling is meant for longer ones, up to its factor.
        """
        if self.positions.kind != "rope" or all(kind.rope == "none" for kind in self.pattern):
            return None
        scaling = self.rope.scaling
        is_dynamic = scaling is not None and scaling.kind == "dynamic"
        return int(self.max_len * scaling.factor) if is_dynamic and scaling else self.max_len

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
        check_counts(self, *sizes, "max_len")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if not self.scan_layers and self.num_layers > MOST_UNSCANNED:
            raise ValueError(
                f"num_layers={self.num_layers} with scan_layers=False: more than {MOST_UNSCANNED} "
                "layers take too long one by one; set scan_layers to true"
            )
        self._check_attention()
        if self.positions.kind == "rope":
            self.rope.check_head(self.rope_dim)
        self._check_buckets()
        self._check_pattern()

    def _check_attention(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        self._check_latent()
        qk_norm, placement = self.attention.qk_norm, self.norms.placement
        if self.attention.cross and self.attention.sinks:
            raise ValueError("attention.cross=True with attention.sinks=True: set one to False")
        if self.attention.cross and (qk_norm != "none" or placement.startswith("parallel")):
            raise ValueError(
                f"attention.cross=True with attention.qk_norm={qk_norm!r} and "
                f"norms.placement={placement!r}: qk_norm must be 'none' and placement not "
                "'parallel'"
            )

    def _check_latent(self) -> None:
        """Raises ValueError for sizes that heads of latent attention cannot have."""
        latent = self.attention.latent
        if latent is None:
            return
        if self.num_kv_heads != self.num_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} with attention.latent: it must be "
                f"num_heads={self.num_heads}"
            )
        if max(latent.rope_dim, latent.value_dim) > self.head_dim:
            raise ValueError(
                f"attention.latent.rope_dim={latent.rope_dim} and value_dim={latent.value_dim} "
                f"must be at most head_dim={self.head_dim}"
            )

    def _check_buckets(self) -> None:
        """Raises ValueError for relative buckets that cannot be laid out.

        A causal stack uses all buckets for keys before the query, another stack half of them.
        """
        if self.positions.relative is None:
            return
        count, distance = self.positions.relative.count, self.positions.relative.max_distance
        causal = self.attention.causal
        least = 2 if causal else 4
        if count < least or count % (least // 2):
            raise ValueError(
                f"positions.relative.count={count} with attention.causal={causal}: it must be at "
                f"least {least}" + ("" if causal else " and even")
            )
        if distance <= count // least:
            raise ValueError(
                f"positions.relative.max_distance={distance} must be greater than "
                f"{count // least}, the number of distances that have their own bucket"
            )

    def _check_pattern(self) -> None:
        """Raises ValueError unless exactly the settings that the pattern's layers use are given."""
        if not self.pattern:
            raise ValueError("pattern=() is empty: give at least one kind of layer")
        attentions = {kind.attention for kind in self.pattern}
        mlps = {kind.mlp for kind in self.pattern}
        for what, is_needed, name, value in (
            ("window", "window" in attentions, "attention.window", self.attention.window),
            ("chunk", "chunk" in attentions, "attention.chunk", self.attention.chunk),
            ("delta", "delta" in attentions, "attention.delta", self.attention.delta),
            ("experts", "experts" in mlps, "experts", self.experts),
        ):
            if is_needed and value is None:
                raise ValueError(f"pattern has layers of kind {what!r}, but {name} is None")
            if not is_needed and value is not None:
                raise ValueError(f"{name} is given, but pattern has no layer of kind {what!r}")
