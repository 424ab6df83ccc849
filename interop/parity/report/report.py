"""What a comparison found."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from jaxllm.jsonable import jsonable

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

__all__ = ["Bucket", "LogitsResult", "Report", "TapResult"]


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
    config: tuple[FieldResult, ...] = ()
    weights: tuple[WeightResult, ...] = ()
    taps: tuple[TapResult, ...] = ()  # in execution order, the logits last
    logits: LogitsResult | None = None
    buckets: tuple[Bucket, ...] = ()
    flips: tuple[RouterFlips, ...] = ()
    gradients: tuple[TensorResult, ...] = ()
    step: tuple[TensorResult, ...] = ()
    curve: tuple[LossResult, ...] = ()
    generate: tuple[TextResult | ScoresResult, ...] = ()
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
    def rows(self) -> dict[str, tuple[Judged, ...]]:
        """What was compared, by level, in the order in which one level's error is another's."""
        parts: list[tuple[TapResult, ...]] = [(), ()]
        for tap in self.taps:
            parts[tap.is_output] += (tap,)
        return {
            "config": self.config,
            "weights": self.weights,
            "layers": parts[0],
            "logits": parts[1],
            "gradients": self.gradients,
            "step": self.step,
            "curve": self.curve,
            "generate": self.generate,
        }

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
        data = {
            "ok": self.ok,
            **dataclasses.asdict(self),
            "tokens": self.tokens,
            "first_divergence": first and first.to_json(),
            **{
                name: [row.to_json() for row in getattr(self, name)]
                for name in ("config", "weights", "taps", "gradients", "step", "curve", "generate")
            },
        }
        return jsonable(data)

    def write_html(self, path: str | Path) -> None:
        """Writes one page that needs nothing else: no network, no script, no other file."""
        from jaxllm.interop.parity.render.html import render

        Path(path).write_text(render(self), encoding="utf-8")

    def table(self) -> RenderableType:
        """The report for a terminal."""
        from jaxllm.interop.parity.render.terminal import render

        return render(self)
