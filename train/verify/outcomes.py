"""What came of running a training step in other ways: the differences, and the verdict."""

import dataclasses
import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxllm import deviation
from jaxllm.strict_json import replace_nonfinite

GRADIENT = "gradient"  # if it is off, so is all that follows from it


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one number, or one array, is from that of one device."""

    what: str  # loss, norm of all gradients; or of a parameter: gradient, square or update
    parameter: str  # or ""
    measured: float  # relative L2
    floor: float  # one device against itself, computed otherwise
    relative_to: str = "own"  # norm; "all" of a gradient that is nothing but noise

    @property
    def threshold(self) -> float:
        """What it may be."""
        return deviation.threshold(self.floor)

    @property
    def ok(self) -> bool:
        """Whether the difference is no more than rounding noise. NaN is not."""
        return self.measured <= self.threshold

    @property
    def ratio(self) -> float:
        """The difference in thresholds; NaN is infinitely many."""
        return math.inf if math.isnan(self.measured) else self.measured / self.threshold

    @property
    def name(self) -> str:
        """As in `gradient of layers.7.mlp.up_proj.kernel`."""
        return f"{self.what} of {self.parameter}" if self.parameter else self.what

    def to_json(self) -> dict[str, Any]:
        """The difference as data; what is not finite is null."""
        data = {**dataclasses.asdict(self), "threshold": self.threshold, "ok": self.ok}
        return replace_nonfinite(data)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one variant."""

    variant: str
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """What is farthest off in thresholds; if something is wrong, a gradient if one is."""

        def rank(found: Difference) -> tuple[bool, bool, float]:
            return not found.ok, not found.ok and found.what == GRADIENT, found.ratio

        return max(self.differences, key=rank)

    @property
    def ok(self) -> bool:
        """Whether it computes what one device computes."""
        return all(difference.ok for difference in self.differences)


@dataclasses.dataclass(frozen=True)
class Equality:
    """What came of all variants."""

    outcomes: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome | None:
        """The first variant that computes something else."""
        return next((outcome for outcome in self.outcomes if not outcome.ok), None)

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        if (first := self.first) is None:
            return f"{len(self.outcomes)} variants compute what one device computes."
        worst = first.worst
        count = sum(not outcome.ok for outcome in self.outcomes)
        return (
            f"{count} of {len(self.outcomes)} variants compute something else. The first is "
            f"{first.variant}: its {worst.name} is {worst.measured:.1e} off, "
            f"the threshold is {worst.threshold:.1e}."
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as data."""
        return {
            "ok": self.first is None,
            "summary": self.summary,
            "variants": [
                {
                    "variant": outcome.variant,
                    "ok": outcome.ok,
                    "worst": outcome.worst.to_json(),
                    "differences": [difference.to_json() for difference in outcome.differences],
                }
                for outcome in self.outcomes
            ],
        }

    def table(self) -> Table:
        """A row for each variant, with its worst failure or what is closest to its threshold."""
        table = Table(box=SIMPLE_HEAD)
        for column in ("variant", "worst error"):
            table.add_column(column, overflow="fold")
        for column in ("error", "noise floor", "threshold"):
            table.add_column(column, justify="right", width=9)
        for outcome in self.outcomes:
            worst = outcome.worst
            figures = (f"{x:.1e}" for x in (worst.measured, worst.floor, worst.threshold))
            mark, style = ("✓", None) if outcome.ok else ("✗", "red")
            table.add_row(f"{mark} {outcome.variant}", worst.name, *figures, style=style)
        return table
