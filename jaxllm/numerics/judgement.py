"""Judgement: whether an error could be one more draw of rounding errors."""

import math
from typing import NamedTuple, Self

import numpy as np

from .distance import norm
from .error_vector import ErrorVector
from .fiducial import fiducial_factor, share_along

# So many draws decide; fewer leave some errors suspect.
ENOUGH = 21

# The limits whose chances add up: of the whole error and of what is left without a direction, each
# of a few draws and of enough.
FIDUCIAL_LIMITS = 4


class Judgement(NamedTuple):
    """An error and the limit that it is compared with, as absolute L2 norms.

    Attributes:
        measured: the length that decides: of the whole error or, if draws share a direction, of
            what is left of it without that direction.
        floor: root mean square of the same length of the draws.
        threshold: what it exceeds by chance only.
        whole_threshold: the threshold of the whole error, if what is left decides.
        is_suspect: whether it is beyond the threshold, but more draws are needed to be certain.
    """

    measured: float
    floor: float
    threshold: float
    whole_threshold: float | None = None
    is_suspect: bool = False

    @property
    def is_within(self) -> bool:
        """Whether the error is within its threshold; NaN is not."""
        return self.measured <= self.threshold


class Spread(NamedTuple):
    """The rounding errors of a result, as absolute L2 norms.

    Errors often share a direction, such as that of one early token that all later ones see. How
    large an error is in this direction is up to chance. What is left without it varies little, and
    shows much smaller mistakes.

    Attributes:
        reference: of the reference in float32.
        scale: root mean square of all errors.
        limit: what the error of a correct result is estimated to exceed by chance only.
        direction: unit vector, in the space of sketches, if the draws share few directions.
        along: root of the sum of the squares of the errors along it.
        rest_scale: as `scale`, without the direction.
        rest_limit: as `limit`, without the direction.
        draws: sketches of the errors; None if they do not explain the reference's error.
        rests: sketches of what is left of them without the direction.
        chance: of exceeding one of the limits.
        allowance: added to all limits.
    """

    reference: float
    scale: float
    limit: float
    direction: np.ndarray | None = None
    along: float = 0.0
    rest_scale: float = 0.0
    rest_limit: float = math.inf
    draws: np.ndarray | None = None
    rests: np.ndarray | None = None
    chance: float = 0.0
    allowance: float = 0.0

    def judge(self, error: ErrorVector) -> Judgement:
        """Compares an error with the limits."""
        rest = self._rest_of(error)
        limits = self.limit, self.rest_limit
        is_decided = self.draws is None or len(self.draws) >= ENOUGH
        if self.draws is not None and is_decided:
            limits = self._fiducial(error, rest)
        found = Judgement(error.length, self.scale, limits[0])
        if rest is not None and found.is_within:
            found = Judgement(rest.length, self.rest_scale, limits[1], whole_threshold=limits[0])
        if found.is_within or is_decided:
            return found
        limit, rest_limit = self._fiducial(error, rest)
        is_certain = not error.length <= limit or (rest and not rest.length <= rest_limit)
        return found._replace(is_suspect=not is_certain)

    def _rest_of(self, error: ErrorVector) -> ErrorVector | None:
        """Returns what is left of an error without the direction, if there is one.

        The direction is estimated from the draws, so that taking an error's part along it away adds
        noise of the draws. The rest is divided by the standard error of this, as the studentized
        residual of a regression is (Cook and Weisberg, 1982, "Residuals and influence in
        regression").
        """
        if self.direction is None:
            return None
        part = float(self.direction @ error.sketch)
        rest = error.sketch - part * self.direction
        return ErrorVector(norm(rest) / math.hypot(1, part / self.along), rest)

    def _fiducial(self, error: ErrorVector, rest: ErrorVector | None) -> tuple[float, float]:
        """Returns the fiducial limits of an error and of what is left of it."""
        limit = self._fiducial_limit(error, self.draws, self.scale)
        if rest is None:
            return limit, math.inf
        return limit, self._fiducial_limit(rest, self.rests, self.rest_scale)

    def _fiducial_limit(self, error: ErrorVector, draws: np.ndarray | None, scale: float) -> float:
        if draws is None or not scale or not np.isfinite(error.sketch).all():
            return self.allowance
        if not error.sketch.any() or not draws.any():
            return scale + self.allowance
        share, chance = share_along(error.sketch, draws), self.chance / FIDUCIAL_LIMITS
        return scale * fiducial_factor(share, len(draws), chance) + self.allowance

    def widened(self, allowance: float) -> Self:
        """Returns the spread with limits that are higher by an allowance."""
        return self._replace(
            limit=self.limit + allowance,
            rest_limit=self.rest_limit + allowance,
            allowance=self.allowance + allowance,
        )
