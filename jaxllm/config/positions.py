"""How a stack knows the positions of its tokens: RoPE, tables, sinusoids or biases of scores."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_choices, check_counts, check_positive

# Queries and keys are rotated, a vector is added to each token, or scores change with the distance
# of query and key: by a slope (Press et al., 2022), by numbers that all layers learn for buckets of
# distances (T5), or by numbers that each layer learns for each distance, ahead and behind.
Positions = Literal["rope", "learned", "sinusoidal", "alibi", "relative", "distance", "none"]
# How the float32 frequencies of sinusoids are computed: 1 / 10000 ** (2j / D), or
# exp(-2j ln(10000) / D). They differ in their last bits, and sinusoids at position 128 by 1e-5.
Waves = Literal["power", "exp"]
RopeLayout = Literal["half", "interleaved"]

# The fields of each kind of RopeScaling besides `factor`.
ROPE_SCALINGS = {
    "linear": (),
    "dynamic": ("original_max_len",),
    "llama3": ("original_max_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_len", "attention_factor", "beta_fast", "beta_slow", "truncate"),
    "longrope": ("original_max_len", "attention_factor", "short_factor", "long_factor"),
}


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
class PositionConfig:
    """The kind of positions, and what some kinds need. RoPE is described by `RopeConfig`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Positions = "rope"
    waves: Waves = "power"  # for kind="sinusoidal"
    offset: int = 0  # rows of a learned table before the row of position 0
    relative: RelativeBuckets | None = None  # for kind="relative"

    def __post_init__(self) -> None:
        check_choices(self, "positions.")
        if self.offset < 0:
            raise ValueError(f"positions.offset={self.offset} is negative")
        if self.offset and self.kind != "learned":
            raise ValueError(
                f"positions.offset={self.offset} is for positions.kind='learned', not {self.kind!r}"
            )
        if (self.relative is not None) != (self.kind == "relative"):
            raise ValueError(
                f"positions.relative={self.relative} with positions.kind={self.kind!r}"
            )


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
        prefix = "rope.scaling."
        check_choices(self, prefix)
        self._check_kind()
        check_counts(self, "factor", "original_max_len", prefix=prefix)
        check_positive(self, "low_freq_factor", "beta_slow", "attention_factor", prefix=prefix)
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, high) < getattr(self, low):
                raise ValueError(
                    f"{prefix}{high}={getattr(self, high)} is less than {low}={getattr(self, low)}"
                )
        self._check_longrope()

    def _check_kind(self) -> None:
        """Raises ValueError for a field that is given but belongs to another kind."""
        ours = {"kind", "factor", *ROPE_SCALINGS[self.kind]}
        for field in dataclasses.fields(self):
            if field.name not in ours and getattr(self, field.name) != field.default:
                given = f"rope.scaling.{field.name}={getattr(self, field.name)}"
                raise ValueError(f"{given} is given, but kind={self.kind!r} has no such field")

    def _check_longrope(self) -> None:
        if self.kind != "longrope":
            return
        if self.original_max_len < 2:  # its logarithm divides
            raise ValueError(
                f"rope.scaling.original_max_len={self.original_max_len} is less than 2"
            )
        short, long = len(self.short_factor), len(self.long_factor)
        if short != long or not short:
            raise ValueError(f"rope.scaling.short_factor has {short} numbers, long_factor {long}")
        if min(*self.short_factor, *self.long_factor) <= 0:
            raise ValueError(
                "rope.scaling.short_factor or long_factor has a number that is not positive"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embeddings (Su et al., 2021), for positions.kind="rope"."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    theta: float = 10000.0
    local_theta: float = 10000.0  # on layers of rope="local", where nothing is scaled
    fraction: float = 1.0  # of a head's elements; the others are not rotated
    layout: RopeLayout = "half"  # which two elements of a head are rotated together
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_choices(self, "rope.")
        check_positive(self, "theta", "local_theta", prefix="rope.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rope.fraction={self.fraction} is not above 0 and up to 1")

    def num_pairs(self, head_dim: int) -> int:
        """The number of rotated pairs of a head. Raises ValueError if an element is left over."""
        rotated = int(head_dim * self.fraction)
        if rotated % 2:
            product = "" if self.fraction == 1 else f" times rope.fraction={self.fraction}"
            raise ValueError(f"head_dim={head_dim}{product} is odd; RoPE rotates pairs")
        return rotated // 2

    def check_head(self, head_dim: int) -> None:
        """Raises ValueError if heads of this size cannot be rotated so."""
        pairs, scaling = self.num_pairs(head_dim), self.scaling
        if scaling is None:
            return
        if scaling.kind == "longrope" and len(scaling.short_factor) != pairs:
            given = len(scaling.short_factor)
            raise ValueError(
                f"rope.scaling.short_factor has {given} numbers for {pairs} rotated pairs"
            )
        if scaling.kind == "dynamic" and pairs < 2:  # theta grows by a power of d / (d - 2)
            raise ValueError(
                f"rope.scaling.kind='dynamic' with {pairs} rotated pairs, not 2 or more"
            )
