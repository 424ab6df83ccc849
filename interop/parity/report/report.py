"""The parity report as data: the verdict of each level and the rows behind it."""

import dataclasses
import itertools
from typing import Any

from jaxllm.strict_json import replace_nonfinite

from .activation_rows import RouterFlips, TapResult, first_wrong
from .judged import Judged
from .rows import (
    FieldResult,
    LossResult,
    OutputResult,
    ScoresResult,
    TensorResult,
    TextResult,
    WeightResult,
)

# The levels whose rows are activations. Their JSON is one list, `taps`.
ACTIVATIONS = ("layers", "logits")


@dataclasses.dataclass(frozen=True)
class LogitsResult:
    """Errors of the logits, against the reference in float32 except where it says float64."""

    relative_l2: float  # distance from float64
    floor: float  # noise floor of `relative_l2`
    threshold: float  # for `relative_l2`
    max_abs: float  # largest difference of a logit
    max_over_rms: float  # the same / RMS of the reference's logits
    kl_mean: float  # KL divergence from the reference in nats, mean over tokens
    kl_max: float  # the same of the token with the largest
    top1_agreement: float  # share of tokens with the same top-1 prediction
    top1_unexplained: int  # tokens whose top-1 prediction differs by more than noise explains

    @property
    def ok(self) -> bool:
        """Whether the error is within its threshold."""
        return self.relative_l2 <= self.threshold


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Errors of the logits within a range of positions."""

    start: int
    stop: int | None  # exclusive; None: to the end of the sequence
    tokens: int
    relative_l2: float
    kl_mean: float  # KL divergence from the reference in nats, mean over tokens
    kl_max: float  # the same of the token with the largest
    top1_agreement: float  # share of tokens with the same top-1 prediction

    @property
    def label(self) -> str:
        """The range as text, such as `4-31` or `512+`."""
        return f"{self.start}+" if self.stop is None else f"{self.start}-{self.stop - 1}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """The verdicts of a comparison and the figures behind them, as plain data."""

    subject: str  # name of what was compared
    verdicts: dict[str, bool]  # by level
    # One row for each thing compared, by level. Levels are ordered from causes to effects.
    rows: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    logits: LogitsResult | None = None
    buckets: tuple[Bucket, ...] = ()
    flips: tuple[RouterFlips, ...] = ()
    unjudged: tuple[str, ...] = ()  # levels that could not be compared, because sizes differ
    # The other levels, with the reason why they were not compared.
    not_compared: dict[str, str] = dataclasses.field(default_factory=dict)
    unseen: tuple[str, ...] = ()  # windows of attention that no input was long enough to show
    left_out: tuple[str, ...] = ()  # activations, or calls, that could not be compared
    batch_size: int
    length: int  # of each row, padding included
    tokens: int  # the number compared, without padding
    inputs: str = "given inputs"  # what was compared on, in words
    later_batches: str = ""  # what training was compared on after the first step, in words
    notes: tuple[str, ...] = ()  # sentences on what was compared
    headlines: tuple[str, str] = ("Parity holds", "Parity is broken")
    date: str = ""  # when, in UTC
    paths: dict[str, str] = dataclasses.field(default_factory=dict)  # of the sides, by name
    # SHA-256 of the weights and of the config of each side.
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int | None  # of drawn inputs; None: the inputs were given
    dtype: str = "float32"  # that both sides compute in
    dtypes: dict[str, str]
    versions: dict[str, str]
    tolerance: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether every level holds."""
        return all(self.verdicts.values())

    @property
    def unclear(self) -> tuple[Judged, ...]:
        """The rows that cannot tell a mistake worth knowing from rounding."""
        return tuple(
            row for rows in self.rows.values() for row in rows if row.verdict == "cannot tell"
        )

    @property
    def config(self) -> tuple[FieldResult, ...]:
        """Rows of the config fields."""
        return self.rows.get("config", ())

    @property
    def weights(self) -> tuple[WeightResult, ...]:
        """Rows of the parameters, compared bit by bit."""
        return self.rows.get("weights", ())

    @property
    def taps(self) -> tuple[TapResult, ...]:
        """Rows of the activations in execution order, the logits last."""
        rows = (row for level in ACTIVATIONS for row in self.rows.get(level, ()))
        return tuple(row for row in rows if isinstance(row, TapResult))

    @property
    def gradients(self) -> tuple[TensorResult, ...]:
        """Rows of the first batch's loss and of every parameter's gradient."""
        return self.rows.get("gradients", ())

    @property
    def step(self) -> tuple[TensorResult, ...]:
        """Rows of the global gradient norm, and of the moments and updates of one AdamW step."""
        return self.rows.get("step", ())

    @property
    def curve(self) -> tuple[LossResult, ...]:
        """Rows of the losses of all training steps."""
        return self.rows.get("curve", ())

    @property
    def generate(self) -> tuple[TextResult | ScoresResult, ...]:
        """Rows of the generated tokens and of the logits behind them."""
        return self.rows.get("generate", ())

    @property
    def first_divergence(self) -> Judged | None:
        """The first row beyond its threshold, from causes to effects; None if there is none.

        Among activations, one that is wrong even when computed from the reference's inputs takes
        precedence.
        """
        rows = itertools.chain.from_iterable(self.rows.values())
        first = next((row for row in rows if not row.ok), None)
        return first_wrong(self.taps) if isinstance(first, TapResult) else first

    def to_json(self) -> dict[str, Any]:
        """Returns the whole report as data for `json.dumps`. NaN and infinity become null."""
        first = self.first_divergence
        data = {"ok": self.ok, **dataclasses.asdict(dataclasses.replace(self, rows={}))}
        del data["rows"]
        for level, rows in self.rows.items():
            are_outputs = any(isinstance(row, OutputResult) for row in rows)
            name = "taps" if level in ACTIVATIONS else level
            name = "outputs" if are_outputs else name  # `logits` is the name of a field
            data.setdefault(name, []).extend(row.to_json() for row in rows)
        return replace_nonfinite({**data, "first_divergence": first and first.to_json()})
