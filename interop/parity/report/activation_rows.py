"""Report rows of activations, and of routers that select other experts."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

from jaxllm.numerics.distance import relative

from .judged import Judged

# The logits are taken from the output of the whole model, since not every family has a module that
# returns them. During the comparison they have this name. In rows, they have the path of the
# module that computes them in the JAX model.
LOGITS = "logits"


@dataclasses.dataclass(frozen=True)
class Error:
    """The distance of a result from the truth, relative L2, with its noise floor and threshold."""

    relative_l2: float
    floor: float  # of the reference with simulated rounding, like `measured`
    threshold: float  # for `measured`
    reference: float = 0.0  # the error of the reference in float32
    outside: float | None = None  # part outside the direction that rounding errors share
    whole_threshold: float | None = None  # for `relative_l2`, if `outside` decides
    is_suspect: bool = False  # beyond its threshold, but more draws are needed to be certain

    @property
    def measured(self) -> float:
        """The error that decides: outside of that direction, if there is one."""
        return self.relative_l2 if self.outside is None else self.outside

    @property
    def ok(self) -> bool:
        """Whether the error is not certain to be beyond its threshold. NaN is."""
        is_within = self.measured <= self.threshold or self.is_suspect
        return is_within and math.isfinite(self.measured)

    @property
    def ratio(self) -> float:
        """The error divided by its threshold."""
        return relative(self.measured, self.threshold)


@dataclasses.dataclass(frozen=True)
class TapResult(Judged):
    """The errors of one activation: after all preceding activations, and on its own.

    Both must be within their thresholds. Its own (`forced`) error misses a bug between two recorded
    activations that the second one hides; the cumulative error misses what is small compared with
    the accumulated noise of all preceding activations.
    """

    path: str
    cumulative: Error  # after all preceding activations
    max_over_rms: float  # largest difference / RMS of the reference
    forced: Error | None = None  # its own error, computed from the reference's inputs
    is_output: bool = False  # whether this is the output of the whole model
    ulp_p50: float = 0.0  # median distance in ULPs of the dtype
    ulp_p99: float = 0.0  # 99th percentile of that distance
    ulp_max: float = 0.0  # largest distance; of large activations, all three are of a sample
    hint: str | None = None
    useful: float = 1e-3  # a threshold above this is too high to tell a mistake from rounding

    @property
    def ok(self) -> bool:
        """Whether both errors are within their thresholds."""
        return self.cumulative.ok and not self.is_wrong_itself

    @property
    def is_suspect(self) -> bool:
        """Whether one of the errors is beyond its threshold, but that is not certain."""
        return self.cumulative.is_suspect or (self.forced is not None and self.forced.is_suspect)

    def convicted(self) -> Self:
        """Returns the row without the benefit of the doubt."""
        cumulative = dataclasses.replace(self.cumulative, is_suspect=False)
        forced = self.forced and dataclasses.replace(self.forced, is_suspect=False)
        return dataclasses.replace(self, cumulative=cumulative, forced=forced)

    @property
    def is_wrong_itself(self) -> bool:
        """Whether it is wrong even when computed from the reference's inputs."""
        return self.forced is not None and not self.forced.ok

    @property
    def decisive(self) -> Error:
        """Its own error if that is too large, else the error closer to its threshold."""
        if self.forced is None:
            return self.cumulative
        if not self.forced.ok:
            return self.forced
        beyond = not self.cumulative.ok or self.cumulative.ratio >= self.forced.ratio
        return self.cumulative if beyond else self.forced

    @property
    def measured(self) -> float:
        """The decisive error."""
        return self.decisive.measured

    @property
    def floor(self) -> float:
        """The noise floor of the decisive error."""
        return self.decisive.floor

    @property
    def threshold(self) -> float:
        """The threshold of the decisive error."""
        return self.decisive.threshold

    @property
    def threshold_along_direction(self) -> float:
        """The threshold along a direction that rounding errors share; 0 if there is none."""
        errors = (self.cumulative, self.forced or self.cumulative)
        return max(error.whole_threshold or 0.0 for error in errors)

    @property
    def highest_threshold(self) -> float:
        """The higher one of the thresholds of both errors."""
        own = self.cumulative if self.forced is None else self.forced
        return max(self.cumulative.threshold, own.threshold)


def first_wrong(taps: Sequence[TapResult]) -> TapResult | None:
    """Returns the first activation that is wrong even when computed from the reference's inputs.

    If there is none, returns the first that is beyond a threshold. `taps` are in execution order.
    """
    wrong = [tap for tap in taps if not tap.ok]
    return next((tap for tap in wrong if tap.is_wrong_itself), next(iter(wrong), None))


@dataclasses.dataclass(frozen=True)
class RouterFlips:
    """Tokens that a router sends to other experts than the reference does.

    After such a router, errors at these tokens are no longer rounding errors.
    """

    path: str  # of the router
    tokens: int
    margin: float  # largest gap, at these tokens, between the last selected and the next logit
    by_noise: int  # tokens that the reference with simulated rounding already reroutes
    is_tie: bool = True  # whether rounding may close that gap
