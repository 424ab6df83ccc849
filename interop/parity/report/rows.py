"""What a comparison consists of: one row for each thing compared."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

# The logits of both sides are taken from their outputs, since not every family has them as the
# output of a module. While they are compared they go by this name, in a row by that of what makes
# them in our model.
LOGITS = "logits"


class Judged:
    """What rows have in common: where, how far off, how far off noise alone would be, and why."""

    path: str  # in our names, as in `layers.7.mlp`
    measured: Any  # a float: the number that decides
    floor: Any  # the reference against itself, computed in another way
    threshold: Any
    hint: str | None

    @property
    def ok(self) -> bool:
        """Whether the error is no more than rounding noise. NaN is not."""
        return self.measured <= self.threshold

    @property
    def ratio(self) -> float:
        """The error in thresholds: above 1 it is too large."""
        if self.threshold:
            return self.measured / self.threshold
        return 0.0 if self.measured == 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """The row as data."""
        judged = {name: getattr(self, name) for name in ("measured", "floor", "threshold", "ok")}
        return {**dataclasses.asdict(self), **judged}  # type: ignore[call-overload]


class Exact(Judged):
    """A row in which nothing but equality will do."""

    floor = 0.0
    threshold = 0.0


@dataclasses.dataclass(frozen=True)
class FieldResult(Exact):
    """A field of the config, as both sides have it."""

    path: str  # as in `config.norms.eps`
    ours: str
    theirs: str
    hint: str | None = None

    @property
    def measured(self) -> float:
        """1 if the two differ."""
        return float(self.ours != self.theirs)


@dataclasses.dataclass(frozen=True)
class WeightResult(Exact):
    """A parameter, and the tensors of the reference that it is made of."""

    path: str  # of the module
    parameter: str  # its name in the module
    stored: tuple[str, ...]
    num_bits: int
    differing_bits: int
    remark: str = ""  # why they could not be compared
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The bits that differ."""
        return float(self.differing_bits)


@dataclasses.dataclass(frozen=True)
class Error:
    """A relative L2 error, that of noise alone, and how large it may be."""

    relative_l2: float
    floor: float
    threshold: float

    @property
    def ok(self) -> bool:
        """Whether it is no more than rounding noise. NaN is not."""
        return self.relative_l2 <= self.threshold

    @property
    def ratio(self) -> float:
        """The error in thresholds."""
        return self.relative_l2 / self.threshold


@dataclasses.dataclass(frozen=True)
class TapResult(Judged):
    """How far one activation is from the reference's, and how far it may be.

    Both errors must hold. The forced one is blind to what is wrong between two steps that are
    shown and put right at the second, the cumulative one to what is small beside the noise of all
    steps before.
    """

    path: str
    cumulative: Error  # with all that the steps before it did
    max_over_rms: float
    forced: Error | None = None  # its own: the steps before it returned what the reference's did
    is_output: bool = False  # whether it is what the model returns
    ulp_p50: float = 0.0
    ulp_p99: float = 0.0
    ulp_max: float = 0.0
    hint: str | None = None

    @property
    def ok(self) -> bool:
        """Whether neither error is more than rounding noise."""
        return self.cumulative.ok and not self.is_wrong_itself

    @property
    def is_wrong_itself(self) -> bool:
        """Whether the step is wrong by itself, whatever it is given."""
        return self.forced is not None and not self.forced.ok

    @property
    def decisive(self) -> Error:
        """Its own error if that is too large, else whichever comes closer to its threshold."""
        if self.forced is None:
            return self.cumulative
        if not self.forced.ok:
            return self.forced
        beyond = not self.cumulative.ok or self.cumulative.ratio >= self.forced.ratio
        return self.cumulative if beyond else self.forced

    @property
    def measured(self) -> float:
        """The decisive error."""
        return self.decisive.relative_l2

    @property
    def floor(self) -> float:
        """The noise of the decisive error."""
        return self.decisive.floor

    @property
    def threshold(self) -> float:
        """The threshold of the decisive error."""
        return self.decisive.threshold


def first_wrong(taps: Sequence[TapResult]) -> TapResult | None:
    """The first in order of execution that is wrong by itself, else the first that is wrong."""
    wrong = [tap for tap in taps if not tap.ok]
    return next((tap for tap in wrong if tap.is_wrong_itself), next(iter(wrong), None))


@dataclasses.dataclass(frozen=True)
class TensorResult(Judged):
    """How far something of a parameter, such as its gradient, is from the reference's."""

    path: str  # of the module
    parameter: str  # its name in the module
    what: str  # gradient, m, v or update; norm of all gradients
    relative_l2: float
    floor: float
    threshold: float
    relative_to: str = "own"  # norm; "all" of a gradient that is nothing but noise
    compared: float = 1.0  # the share of its elements that are more than noise
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The relative L2 error."""
        return self.relative_l2


@dataclasses.dataclass(frozen=True)
class LossResult(Judged):
    """The loss of one step of training on both sides."""

    path: str  # as in `step 3`
    ours: float
    theirs: float
    floor: float
    threshold: float
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The difference, relative to the reference's loss."""
        return abs(self.ours - self.theirs) / abs(self.theirs)


@dataclasses.dataclass(frozen=True)
class TextResult(Exact):
    """What both sides continue a prompt with."""

    path: str  # as in `generate.beams`
    prompt_tokens: int
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    is_tie: bool = False  # whether they part where noise may decide
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The tokens that differ, unless they do by a tie."""
        differing = sum(a != b for a, b in zip(self.ours, self.theirs, strict=False))
        differing += abs(len(self.ours) - len(self.theirs))
        return 0.0 if self.is_tie else float(differing)


@dataclasses.dataclass(frozen=True)
class ScoresResult(Judged):
    """What tokens are chosen by on the way: logits out of a cache, or filtered ones."""

    path: str  # as in `generate.logits`
    relative_l2: float
    floor: float
    threshold: float
    unexplained: int = 0  # tokens that one side alone filters out, though they are no tie
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The relative L2 error; infinite if other tokens are filtered out."""
        return math.inf if self.unexplained else self.relative_l2


@dataclasses.dataclass(frozen=True)
class RouterFlips:
    """Tokens that go to other experts than the reference's: beyond them errors are not rounding."""

    path: str  # of the router
    tokens: int
    margin: float  # the largest, at these tokens, between the last chosen logit and the next
    by_noise: int  # tokens that the reference itself sends elsewhere when computed in other ways
