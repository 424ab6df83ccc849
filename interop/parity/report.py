"""What a comparison found."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from rich.console import RenderableType


@dataclasses.dataclass(frozen=True)
class TapResult:
    """How far one activation is from the reference's, and how far it may be."""

    path: str  # in our names, as in `layers.7.mlp`
    relative_l2: float
    max_over_rms: float
    floor: float  # the reference against itself, computed in another way
    threshold: float

    @property
    def measured(self) -> float:
        """The number that decides."""
        return self.relative_l2

    @property
    def ok(self) -> bool:
        """Whether the error is no more than rounding noise. NaN is not."""
        return self.relative_l2 <= self.threshold

    @property
    def ratio(self) -> float:
        """The error in thresholds: above 1 it is too large."""
        return self.relative_l2 / self.threshold


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
    """The verdicts of a comparison, and the figures behind them."""

    subject: str  # what was compared
    verdicts: dict[str, bool]  # by level
    taps: tuple[TapResult, ...]  # in execution order
    logits: LogitsResult
    buckets: tuple[Bucket, ...]
    batch_size: int
    length: int
    seed: int | None  # of the tokens, if they were drawn
    dtypes: dict[str, str]
    versions: dict[str, str]
    tolerance: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether every level holds."""
        return all(self.verdicts.values())

    @property
    def first_divergence(self) -> TapResult | None:
        """The first activation, in execution order, that is off by more than noise."""
        return next((tap for tap in self.taps if not tap.ok), None)

    @property
    def tokens(self) -> int:
        """The number of tokens compared."""
        return self.batch_size * self.length

    def to_json(self) -> dict[str, Any]:
        """Everything, as data for `json.dumps`. Numbers that are not finite are null."""
        first = self.first_divergence
        data = {
            "ok": self.ok,
            **dataclasses.asdict(self),
            "tokens": self.tokens,
            "first_divergence": first and _tap(first),
            "taps": [_tap(tap) for tap in self.taps],
        }
        return _finite(data)

    def write_html(self, path: str | Path) -> None:
        """Writes one page that needs nothing else: no network, no script, no other file."""
        from .page import render

        Path(path).write_text(render(self), encoding="utf-8")

    def table(self) -> RenderableType:
        """The report for a terminal."""
        from .screen import render

        return render(self)


def _tap(tap: TapResult) -> dict[str, Any]:
    return {**dataclasses.asdict(tap), "measured": tap.measured, "ok": tap.ok}


def _finite(data: Any) -> Any:
    """JSON has no word for NaN and infinity."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
