"""Verdicts: what every row of a report has, and how it is judged."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal, Self, TypeVar

from jaxllm.numerics.distance import relative
from jaxllm.numerics.significance import LEAST_COMPARED

Verdict = Literal["equal within rounding", "differs", "cannot tell"]


class Judged:
    """Base class of rows: a place in the model, its error, noise floor and threshold, and a hint.

    Attributes:
        path: dotted path in the JAX model, as in `layers.7.mlp`.
        measured: the error that decides, a float.
        floor: the noise floor: the error that rounding alone causes in the reference.
        threshold: the largest error that passes.
        hint: the likely cause, if known.
        useful: a threshold above this is too high to tell a mistake from rounding.
        compared: the share of the elements that is compared.
        is_suspect: whether the error is beyond its threshold, but by so little that only more draws
            of rounding errors can tell.
    """

    path: str
    measured: Any
    floor: Any
    threshold: Any
    hint: str | None
    useful: float = math.inf
    is_suspect: Any = False
    compared: Any = 1.0

    @property
    def ok(self) -> bool:
        """Whether the error is not certain to be beyond its threshold. NaN and infinity are."""
        is_within = self.measured <= self.threshold or self.is_suspect
        return bool(is_within and math.isfinite(self.measured))

    @property
    def highest_threshold(self) -> float:
        """The threshold below which a mistake may hide."""
        return float(self.threshold)

    @property
    def threshold_along_direction(self) -> float:
        """The threshold along a direction that rounding errors share; 0 if there is none."""
        return 0.0

    @property
    def verdict(self) -> Verdict:
        """Whether both sides are equal within rounding, differ, or cannot be told apart."""
        if not self.ok:
            return "differs"
        return "cannot tell" if self.reason else "equal within rounding"

    @property
    def reason(self) -> str:
        """Why the row cannot tell a mistake from rounding, or ""."""
        if not self.ok:
            return ""
        if self.is_suspect:
            return (
                f"the error is {self.ratio:.2g} times the threshold, which may be too low: more "
                f"draws of rounding errors are needed"
            )
        if self.highest_threshold > self.useful:
            return (
                f"rounding alone may cause {self.highest_threshold:.1e}, more than "
                f"{self.useful:.0e}: smaller mistakes could hide"
            )
        if self.compared < LEAST_COMPARED:
            return f"only {self.compared:.1%} of the elements are compared: the others are noise"
        return ""

    def convicted(self) -> Self:
        """Returns the row without the benefit of the doubt: it differs if it is suspect."""
        return self

    @property
    def ratio(self) -> float:
        """The error divided by its threshold."""
        return relative(self.measured, self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of the row, its error, noise floor, threshold and verdict."""
        names = ("measured", "floor", "threshold", "ok", "verdict", "reason")
        judged = {name: getattr(self, name) for name in names}
        return {**dataclasses.asdict(self), **judged}  # type: ignore[call-overload]


AnyRow = TypeVar("AnyRow", bound=Judged)


def settled(rows: Iterable[AnyRow]) -> tuple[AnyRow, ...]:
    """Returns rows of which some are suspect: if others certainly differ, they differ, too."""
    rows = tuple(rows)
    return rows if all(row.ok for row in rows) else tuple(row.convicted() for row in rows)


class Exact(Judged):
    """Base class of rows that must be equal: noise floor and threshold are zero."""

    floor = 0.0
    threshold = 0.0
