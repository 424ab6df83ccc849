"""The parity report as data: the verdict of each level and the rows behind it."""

import dataclasses
import itertools
from typing import Any

from jaxllm.strict_json import replace_nonfinite

from .rows import (
    FieldResult,
    Judged,
    LossResult,
    RouterFlips,
    ScoresResult,
    TapResult,
    TensorResult,
    TextResult,
    WeightResult,
    first_wrong,
)

# The levels whose rows are activations, which are one list in JSON: `taps`.
ACTIVATIONS = ("layers", "logits")


@dataclasses.dataclass(frozen=True)
class LogitsResult:
    """How far the predictions are from the reference's. `relative_l2` decides."""

    relative_l2: float
    floor: float
    threshold: float
    max_abs: float
    max_over_rms: float
    kl_mean: float  # nats per token
    kl_max: float
    top1_agreement: float  # the share of tokens whose likeliest successor is the same
    top1_unexplained: int  # tokens where it is another though noise could not have swapped them

    @property
    def ok(self) -> bool:
        """Whether the error is no more than rounding noise."""
        return self.relative_l2 <= self.threshold


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The logits at a range of positions."""

    start: int
    stop: int | None
    tokens: int
    relative_l2: float
    kl_mean: float
    kl_max: float
    top1_agreement: float

    @property
    def label(self) -> str:
        """The range as text."""
        return f"{self.start}+" if self.stop is None else f"{self.start}-{self.stop - 1}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The verdicts of a comparison, and the figures behind them, as plain data."""

    subject: str  # what was compared
    verdicts: dict[str, bool]  # by level
    # What was compared, by level, in the order in which one level's error is another's.
    rows: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    logits: LogitsResult | None = None
    buckets: tuple[Bucket, ...] = ()
    flips: tuple[RouterFlips, ...] = ()
    unjudged: tuple[str, ...] = ()  # the levels that nothing could be compared at: sizes differ
    batch_size: int
    length: int
    tokens: int  # that are compared, so without padding
    seed: int | None  # of the tokens, if they were drawn
    dtypes: dict[str, str]
    versions: dict[str, str]
    tolerance: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether every level holds."""
        return all(self.verdicts.values())

    @property
    def config(self) -> tuple[FieldResult, ...]:
        """The fields of the config."""
        return self.rows.get("config", ())

    @property
    def weights(self) -> tuple[WeightResult, ...]:
        """The parameters, bit by bit."""
        return self.rows.get("weights", ())

    @property
    def taps(self) -> tuple[TapResult, ...]:
        """The activations in execution order, the logits last."""
        return tuple(tap for level in ACTIVATIONS for tap in self.rows.get(level, ()))

    @property
    def gradients(self) -> tuple[TensorResult, ...]:
        """The loss of the first batch, and the gradients."""
        return self.rows.get("gradients", ())

    @property
    def step(self) -> tuple[TensorResult, ...]:
        """The norm that clips, and the moments and updates of one step of training."""
        return self.rows.get("step", ())

    @property
    def curve(self) -> tuple[LossResult, ...]:
        """The losses of all steps of training."""
        return self.rows.get("curve", ())

    @property
    def generate(self) -> tuple[TextResult | ScoresResult, ...]:
        """What both sides generate."""
        return self.rows.get("generate", ())

    @property
    def first_divergence(self) -> Judged | None:
        """The first of all rows that is off by more than noise, from causes to effects.

        Of activations the first that is wrong by itself, given what the reference's steps return.
        """
        rows = itertools.chain.from_iterable(self.rows.values())
        first = next((row for row in rows if not row.ok), None)
        return first_wrong(self.taps) if isinstance(first, TapResult) else first

    def to_json(self) -> dict[str, Any]:
        """Everything, as data for `json.dumps`. Numbers that are not finite are null."""
        first = self.first_divergence
        data = {"ok": self.ok, **dataclasses.asdict(dataclasses.replace(self, rows={}))}
        del data["rows"]
        for level, rows in self.rows.items():
            name = "taps" if level in ACTIVATIONS else level
            data.setdefault(name, []).extend(row.to_json() for row in rows)
        return replace_nonfinite({**data, "first_divergence": first and first.to_json()})
