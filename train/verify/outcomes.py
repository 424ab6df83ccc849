"""Results of a layout comparison: differences, the verdict and its table."""

import dataclasses
import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxllm.numerics.distance import relative
from jaxllm.numerics.significance import LEAST_COMPARED
from jaxllm.strict_json import replace_nonfinite
from jaxllm.train.checkpoint_arrays import FIRST_MOMENT
from jaxllm.untrusted.printable import literal

# A threshold above this is too high to tell a mistake from rounding.
USEFUL = 1e-3


@dataclasses.dataclass(frozen=True)
class Difference:
    """The error of one number or array, relative to the single-device step."""

    what: str  # loss, norm of all gradients, or a parameter's first moment, second moment or update
    parameter: str  # name of the parameter, or ""
    measured: float  # relative L2 error
    floor: float  # noise floor: the error that rounding causes in equivalent single-device steps
    threshold: float  # the largest error that rounding explains
    # The threshold of the whole error: above `threshold` if `measured` leaves out a direction that
    # rounding errors share.
    highest_threshold: float
    relative_to: str = "own"  # norm of the array; "all" gradients if this one is only noise
    compared: float = 1.0  # share of the elements; in updates, those whose gradient is no noise
    is_suspect: bool = False  # beyond the threshold, but more evaluations are needed to be certain

    @property
    def ok(self) -> bool:
        """Whether the error is within the threshold; False for NaN and infinity."""
        return math.isfinite(self.measured) and self.measured <= self.threshold

    @property
    def is_decided(self) -> bool:
        """Whether enough is compared, by a threshold that tells a mistake from rounding."""
        is_useful = self.compared >= LEAST_COMPARED and self.highest_threshold <= USEFUL
        return not self.ok or is_useful

    @property
    def ratio(self) -> float:
        """The error divided by the threshold; infinite for NaN."""
        if not math.isfinite(self.measured):
            return math.inf
        return relative(self.measured, self.threshold)

    @property
    def name(self) -> str:
        """A name such as `first moment of layers.7.mlp.up_proj.kernel`."""
        return f"{self.what} of {self.parameter}" if self.parameter else self.what

    def to_json(self) -> dict[str, Any]:
        """Returns the difference as JSON data; numbers that are not finite become null."""
        data = {**dataclasses.asdict(self), "ok": self.ok, "is_decided": self.is_decided}
        return replace_nonfinite(data)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The differences between one variant and the single-device step."""

    variant: str
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """The difference with the highest ratio; among failures, gradients come first."""

        def rank(found: Difference) -> tuple[bool, bool, float]:
            # The first moment of a first step is the clipped gradient times 1 - b1.
            return not found.ok, not found.ok and found.what == FIRST_MOMENT, found.ratio

        return max(self.differences, key=rank)

    @property
    def ok(self) -> bool:
        """Whether every difference is within its threshold."""
        return all(difference.ok for difference in self.differences)


@dataclasses.dataclass(frozen=True)
class Equality:
    """The outcomes of all variants and the verdict."""

    outcomes: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome | None:
        """The first variant that fails, or None."""
        return next((outcome for outcome in self.outcomes if not outcome.ok), None)

    @property
    def summary(self) -> str:
        """The verdict in one or two sentences."""
        if (first := self.first) is None:
            equal = f"All {len(self.outcomes)} variants match the single-device step."
            return f"{equal} {self._undecided}".rstrip()
        worst = first.worst
        count = sum(not outcome.ok for outcome in self.outcomes)
        return (
            f"{count} of {len(self.outcomes)} variants differ from the single-device step. The "
            f"first is {first.variant}: the error of its {worst.name} is {worst.measured:.1e}, "
            f"above the threshold of {worst.threshold:.1e}."
        )

    @property
    def _undecided(self) -> str:
        """A sentence on the comparisons that cannot tell; empty if there are none."""
        compared = [found for outcome in self.outcomes for found in outcome.differences]
        undecided = [found for found in compared if not found.is_decided]
        if not undecided:
            return ""
        worst = max(undecided, key=lambda found: found.highest_threshold)
        return (
            f"{len(undecided)} of {len(compared)} comparisons cannot tell a mistake from rounding: "
            f"the threshold of the {worst.name} is {worst.highest_threshold:.1e}."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict and all outcomes as JSON data."""
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
        """Renders one row per variant with its worst difference."""
        table = Table(box=SIMPLE_HEAD)
        for column in ("variant", "worst error"):
            table.add_column(column, overflow="fold")
        for column in ("error", "noise floor", "threshold"):
            table.add_column(column, justify="right", width=9)
        for outcome in self.outcomes:
            worst = outcome.worst
            figures = (f"{x:.1e}" for x in (worst.measured, worst.floor, worst.threshold))
            mark, style = ("✓", None) if outcome.ok else ("✗", "red")
            table.add_row(f"{mark} {outcome.variant}", literal(worst.name), *figures, style=style)
        return table
