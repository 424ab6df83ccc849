"""Config of positions: RoPE, learned or sinusoidal embeddings, or biases added to scores."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_counts, check_fields, check_not_negative, check_positive

# "rope" rotates queries and keys. "learned" and "sinusoidal" add a vector to each token. "alibi",
# "relative" and "distance" add a bias to scores by the distance from query to key: a fixed slope
# (Press et al., 2022), learned per bucket of distances and shared by all layers (T5), or learned
# per layer and distance, ahead and behind.
Positions = Literal["rope", "learned", "sinusoidal", "alibi", "relative", "distance", "none"]
# Formula of the float32 frequencies of sinusoids: 1 / 10000 ** (2j / D) ("power"), or
# exp(-2j ln(10000) / D) ("exp"). They differ in the last bits; sinusoids at position 128 differ by
# 1e-5. A sine is followed by its cosine. In others all sines come before all cosines: "halves" has
# the angles of "power", but in float64, and "tensor2tensor" exp(-j ln(10000) / (D / 2 - 1)).
Waves = Literal["power", "exp", "halves", "tensor2tensor"]
# Pairs among the R rotated elements of a head: (j, j + R/2) as in Hugging Face's Llama ("half"), or
# (2j, 2j + 1) as in the paper and in Meta's code ("interleaved").
RopeLayout = Literal["half", "interleaved"]

# Fields of `RopeScaling` that each kind uses, besides `factor`.
ROPE_SCALINGS = {
    "linear": (),
    "dynamic": ("original_max_len",),
    "llama3": ("original_max_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_len", "attention_factor", "beta_fast", "beta_slow", "truncate"),
    "longrope": ("original_max_len", "attention_factor", "short_factor", "long_factor"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBuckets:
    """Buckets of distances that share a bias (T5).

    Each near distance has its own bucket; buckets of far distances grow ever wider. Half of the
    buckets are for keys before the query and half for keys after it; in a causal stack, all are
    for keys before it. Distances from `max_distance` on share the last bucket.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    count: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        check_fields(self, "positions.relative.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """The kind of positions and the settings of some kinds; `RopeConfig` has those of RoPE."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Positions = "rope"
    waves: Waves = "power"  # for kind="sinusoidal"
    # For kind="learned": rows of the table before that of position 0. For kind="sinusoidal": the
    # number that stands for the first position.
    offset: int = 0
    relative: RelativeBuckets | None = None  # for kind="relative"

    def __post_init__(self) -> None:
        check_fields(self, "positions.")
        check_not_negative(self, "offset", prefix="positions.")
        if self.offset and self.kind not in ("learned", "sinusoidal"):
            raise ValueError(
                f"positions.offset={self.offset} is for positions.kind='learned' or 'sinusoidal', "
                f"not {self.kind!r}"
            )
        if (self.relative is not None) != (self.kind == "relative"):
            raise ValueError(
                f"positions.relative={self.relative} with positions.kind={self.kind!r}: "
                "give it for kind='relative', and only for that kind"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Scaling of rotary frequencies for contexts longer than those of pretraining.

    Kinds:
        linear: divides every frequency by `factor` (Chen et al., 2023).
        llama3: divides frequencies whose wavelength exceeds `original_max_len / low_freq_factor`,
            keeps those whose wavelength is below `original_max_len / high_freq_factor`, and blends
            in between (Llama 3.1).
        yarn: divides frequencies of fewer than `beta_slow` turns in `original_max_len`, keeps
            those of more than `beta_fast` turns, and blends in between (Peng et al., 2023).
        dynamic: changes nothing up to a sequence length of `original_max_len`; for longer
            sequences, theta grows with the length ("NTK").
        longrope: divides each frequency by its own factor, from `short_factor` up to a sequence
            length of `original_max_len` and from `long_factor` beyond (Ding et al., 2024).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float
    original_max_len: int = 8192
    attention_factor: float | None = None  # factor of cosines and sines; None: as in the paper
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # whether yarn's blend starts and ends at whole pairs
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        prefix = "rope.scaling."
        check_fields(self, prefix)
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
        """Raises ValueError if a field of another kind is given."""
        ours = {"kind", "factor", *ROPE_SCALINGS[self.kind]}
        for field in dataclasses.fields(self):
            if field.name not in ours and getattr(self, field.name) != field.default:
                given = f"rope.scaling.{field.name}={getattr(self, field.name)}"
                raise ValueError(f"{given} is given, but kind={self.kind!r} does not use it")

    def _check_longrope(self) -> None:
        if self.kind != "longrope":
            return
        if self.original_max_len < 2:  # its logarithm divides
            raise ValueError(
                f"rope.scaling.original_max_len={self.original_max_len} is less than 2"
            )
        short, long = len(self.short_factor), len(self.long_factor)
        if short != long or not short:
            raise ValueError(
                f"rope.scaling.short_factor has {short} numbers and long_factor {long}: give one "
                "for each rotated pair, in both"
            )
        if min(*self.short_factor, *self.long_factor) <= 0:
            raise ValueError(
                "rope.scaling.short_factor or long_factor has a number that is not positive"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embeddings (Su et al., 2021), for positions.kind="rope"."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    theta: float = 10000.0
    local_theta: float = 10000.0  # on layers of rope="local", which never use `scaling`
    fraction: float = 1.0  # fraction of a head's elements that is rotated
    layout: RopeLayout = "half"  # how the elements of a head form pairs
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_fields(self, "rope.")
        check_positive(self, "theta", "local_theta", prefix="rope.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rope.fraction={self.fraction} must be above 0 and at most 1")

    def num_pairs(self, head_dim: int) -> int:
        """Returns the number of rotated pairs in a head. Raises ValueError for half a pair or 0."""
        rotated = int(head_dim * self.fraction)
        if rotated % 2 or not rotated:
            product = "" if self.fraction == 1 else f" times rope.fraction={self.fraction}"
            problem = "odd" if rotated else "less than 1"
            raise ValueError(f"head_dim={head_dim}{product} is {problem}, but RoPE rotates pairs")
        return rotated // 2

    def check_head(self, head_dim: int) -> None:
        """Raises ValueError if these settings do not fit heads of this size."""
        pairs, scaling = self.num_pairs(head_dim), self.scaling
        if scaling is None:
            return
        if scaling.kind == "longrope" and len(scaling.short_factor) != pairs:
            given = len(scaling.short_factor)
            raise ValueError(
                f"rope.scaling.short_factor has {given} numbers for {pairs} rotated pairs: give "
                "one for each"
            )
        if scaling.kind == "dynamic" and pairs < 2:  # theta grows by a power of d / (d - 2)
            raise ValueError(
                f"rope.scaling.kind='dynamic' needs 2 or more rotated pairs, not {pairs}"
            )
