"""Verdicts: what every row of a report has, and how it is judged."""

import dataclasses
import math
from typing import Any, Literal

from jaxllm.numerics.distance import relative

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
    """

    path: str
    measured: Any
    floor: Any
    threshold: Any
    hint: str | None
    useful: float = math.inf

    @property
    def ok(self) -> bool:
        """Whether the error is within its threshold. NaN and infinity are not."""
        return bool(self.measured <= self.threshold and math.isfinite(self.measured))

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
        return "cannot tell" if self.highest_threshold > self.useful else "equal within rounding"

    @property
    def ratio(self) -> float:
        """The error divided by its threshold."""
        return relative(self.measured, self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of the row, its error, noise floor, threshold and verdict."""
        names = ("measured", "floor", "threshold", "ok", "verdict")
        judged = {name: getattr(self, name) for name in names}
        return {**dataclasses.asdict(self), **judged}  # type: ignore[call-overload]


class Exact(Judged):
    """Base class of rows that must be equal: noise floor and threshold are zero."""

    floor = 0.0
    threshold = 0.0
