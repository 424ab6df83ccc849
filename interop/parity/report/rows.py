"""Report rows: one for each field, tensor, activation, loss or text that is compared."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

# The logits are taken from the output of the whole model, since not every family has a module that
# returns them. During the comparison they have this name. In rows, they have the path of the
# module that computes them in the JAX model.
LOGITS = "logits"
# The unit of losses of tokens.
NATS = "nats per token"


Verdict = Literal["equal within rounding", "differs", "cannot tell"]


class Judged:
    """Base class of rows: a place in the model, its error, noise floor and threshold, and a hint.

    Attributes:
        path: dotted path in the JAX model, as in `layers.7.mlp`.
        measured: the error that decides, a float.
        floor: the noise floor: the error that rounding alone causes in the reference.
        threshold: the largest error that passes.
        hint: the likely cause, if known.
    """

    path: str
    measured: Any
    floor: Any
    threshold: Any
    hint: str | None
    # A threshold above this is too high to tell a mistake from rounding.
    useful: ClassVar[float] = math.inf

    @property
    def ok(self) -> bool:
        """Whether the error is within its threshold. NaN is not."""
        return self.measured <= self.threshold

    @property
    def verdict(self) -> Verdict:
        """Whether both sides are equal within rounding, differ, or cannot be told apart."""
        if not self.ok:
            return "differs"
        return "cannot tell" if self.threshold > self.useful else "equal within rounding"

    @property
    def ratio(self) -> float:
        """The error divided by its threshold."""
        if self.threshold:
            return self.measured / self.threshold
        return 0.0 if self.measured == 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of the row, its error, noise floor, threshold and verdict."""
        names = ("measured", "floor", "threshold", "ok", "verdict")
        judged = {name: getattr(self, name) for name in names}
        return {**dataclasses.asdict(self), **judged}  # type: ignore[call-overload]


class Exact(Judged):
    """Base class of rows that must be equal: noise floor and threshold are zero."""

    floor = 0.0
    threshold = 0.0


@dataclasses.dataclass(frozen=True)
class FieldResult(Exact):
    """A config field of both sides."""

    path: str  # as in `config.norms.eps`
    ours: str
    theirs: str
    hint: str | None = None

    @property
    def measured(self) -> float:
        """1 if the two differ, else 0."""
        return float(self.ours != self.theirs)


@dataclasses.dataclass(frozen=True)
class WeightResult(Exact):
    """A parameter, compared bit by bit with the tensors of the reference that map to it."""

    path: str  # of the module
    parameter: str  # its name in the module
    stored: tuple[str, ...]  # names of the reference's tensors
    num_bits: int
    differing_bits: int
    remark: str = ""  # why the two could not be compared, or which tensor this one is a copy of
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The number of differing bits."""
        return float(self.differing_bits)


@dataclasses.dataclass(frozen=True)
class Error:
    """A relative L2 error with its noise floor and threshold."""

    relative_l2: float
    floor: float
    threshold: float

    @property
    def ok(self) -> bool:
        """Whether the error is within its threshold. NaN is not."""
        return self.relative_l2 <= self.threshold

    @property
    def ratio(self) -> float:
        """The error divided by its threshold."""
        return self.relative_l2 / self.threshold


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
    ulp_p50: float = 0.0  # median distance in float32 ULPs
    ulp_p99: float = 0.0  # 99th percentile of that distance
    ulp_max: float = 0.0  # largest distance
    hint: str | None = None

    @property
    def ok(self) -> bool:
        """Whether both errors are within their thresholds."""
        return self.cumulative.ok and not self.is_wrong_itself

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
        return self.decisive.relative_l2

    @property
    def floor(self) -> float:
        """The noise floor of the decisive error."""
        return self.decisive.floor

    @property
    def threshold(self) -> float:
        """The threshold of the decisive error."""
        return self.decisive.threshold


def first_wrong(taps: Sequence[TapResult]) -> TapResult | None:
    """Returns the first activation that is wrong even when computed from the reference's inputs.

    If there is none, returns the first that is beyond a threshold. `taps` are in execution order.
    """
    wrong = [tap for tap in taps if not tap.ok]
    return next((tap for tap in wrong if tap.is_wrong_itself), next(iter(wrong), None))


@dataclasses.dataclass(frozen=True)
class TensorResult(Judged):
    """The error of a parameter's gradient, moment or update: its distance from the truth.

    The truth is what the reference computes in float64.
    """

    useful = 1e-3

    path: str  # of the module
    parameter: str  # its name in the module
    what: str  # gradient, m, v or update; loss of the batch; norm of all gradients
    relative_l2: float
    floor: float  # of the reference with simulated rounding
    threshold: float
    reference: float = 0.0  # the error of the reference in float32
    # What the error is relative to: the tensor's "own" norm, or the norm of "all" gradients if the
    # tensor is nothing but noise.
    relative_to: str = "own"
    compared: float = 1.0  # share of elements compared: those above the noise
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The relative L2 error."""
        return self.relative_l2


@dataclasses.dataclass(frozen=True)
class LossResult(Judged):
    """The loss of one training step on both sides."""

    useful = 1e-4

    path: str  # as in `step 3`
    ours: float
    theirs: float
    truth: float  # the loss of the reference in float64
    floor: float
    threshold: float
    hint: str | None = None
    unit: str = NATS  # of the losses

    @property
    def measured(self) -> float:
        """The difference from the truth, relative to it."""
        return abs(self.ours - self.truth) / abs(self.truth)


@dataclasses.dataclass(frozen=True)
class TextResult(Exact):
    """The tokens that both sides generate from one prompt."""

    path: str  # as in `generate.beams`
    prompt_tokens: int  # length of the prompt
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    is_tie: bool = False  # whether the two diverge where rounding noise decides
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The number of differing tokens; 0 if the two diverge at a tie."""
        differing = sum(a != b for a, b in zip(self.ours, self.theirs, strict=False))
        differing += abs(len(self.ours) - len(self.theirs))
        return 0.0 if self.is_tie else float(differing)


@dataclasses.dataclass(frozen=True)
class ScoresResult(Judged):
    """The error of the values that tokens are chosen by: logits with a cache, or after filters."""

    path: str  # as in `generate.logits`
    relative_l2: float
    floor: float
    threshold: float
    unexplained: int = 0  # tokens that only one side filters out, by more than noise explains
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The relative L2 error; infinite if the two sides filter out different tokens."""
        return math.inf if self.unexplained else self.relative_l2


@dataclasses.dataclass(frozen=True)
class RouterFlips:
    """Tokens that a router sends to other experts than the reference does.

    After such a router, errors at these tokens are no longer rounding errors.
    """

    path: str  # of the router
    tokens: int
    margin: float  # largest gap, at these tokens, between the last selected and the next logit
    by_noise: int  # tokens that equivalent evaluations of the reference already reroute
