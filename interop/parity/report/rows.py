"""Report rows: one for each field, tensor, activation, loss or text that is compared."""

import dataclasses
import math
from typing import Self

from jaxllm.numerics.distance import relative

from .activation_rows import Error
from .judged import Exact, Judged

# The unit of losses of tokens.
NATS = "nats per token"


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
    differing_bits: int | None  # None: their digests differ, which do not say in how many bits
    remark: str = ""  # why the two could not be compared, or which tensor this one is a copy of
    hint: str | None = None
    num_nan: int = 0  # values of the model that are not numbers
    digests: tuple[str, str] = ("", "")  # of the model's array and the reference's; "": no array

    @property
    def measured(self) -> float:
        """The number of differing bits; 1 if it is not known."""
        return 1.0 if self.differing_bits is None else float(self.differing_bits)


@dataclasses.dataclass(frozen=True)
class OutputResult(Exact):
    """How far the outputs of two checkpoints are apart, over all tokens or vectors."""

    path: str
    relative_l2: float
    max_abs: float
    kl_mean: float | None = None  # KL divergence from the reference in nats, mean over tokens
    kl_max: float | None = None  # the same of the token with the largest
    top1_agreement: float | None = None  # share of tokens with the same top-1 prediction
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The relative L2 difference."""
        return self.relative_l2


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
    threshold: float  # for `measured`
    reference: float = 0.0  # the error of the reference in float32
    # What the error is relative to: the tensor's "own" norm, or the norm of "all" gradients if the
    # tensor is nothing but noise.
    relative_to: str = "own"
    compared: float = 1.0  # share of elements compared: those above the noise
    hint: str | None = None
    outside: float | None = None  # part outside the direction that rounding errors share
    whole_threshold: float | None = None  # for `relative_l2`, if `outside` decides
    is_suspect: bool = False  # beyond its threshold, but more draws are needed to be certain

    def convicted(self) -> Self:
        """Returns the row without the benefit of the doubt."""
        return dataclasses.replace(self, is_suspect=False)

    @property
    def threshold_along_direction(self) -> float:
        """The threshold along a direction that rounding errors share; 0 if there is none."""
        return self.whole_threshold or 0.0

    @property
    def measured(self) -> float:
        """The error that decides: outside of that direction, if there is one."""
        return self.relative_l2 if self.outside is None else self.outside


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
        return relative(abs(self.ours - self.truth), abs(self.truth))


@dataclasses.dataclass(frozen=True)
class TextResult(Exact):
    """The tokens that both sides generate from one prompt.

    Where rounding decides between two tokens, the texts may diverge. What follows is then judged by
    the reference: whether it would have chosen our tokens after our text. Where that is unknown,
    nothing can be told beyond the tie.
    """

    useful = 0.0

    path: str  # as in `generate.beams`
    prompt_tokens: int  # length of the prompt
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    is_tie: bool = False  # whether the two diverge where rounding noise decides
    is_confirmed: bool = False  # whether the reference would have continued our text as we did
    hint: str | None = None

    @property
    def measured(self) -> float:
        """The number of differing tokens; 0 if the two diverge at a tie."""
        differing = sum(a != b for a, b in zip(self.ours, self.theirs, strict=False))
        differing += abs(len(self.ours) - len(self.theirs))
        return 0.0 if self.is_tie else float(differing)

    @property
    def highest_threshold(self) -> float:
        """Infinity if what follows a tie is unknown."""
        return math.inf if self.is_tie and not self.is_confirmed else 0.0

    @property
    def reason(self) -> str:
        """Why the row cannot tell a mistake from rounding, or ""."""
        return "what follows the tie is not known" if self.highest_threshold else ""


@dataclasses.dataclass(frozen=True)
class ScoresResult(Judged):
    """The error of the values that tokens are chosen by: logits with a cache, or after filters."""

    useful = 1e-3

    path: str  # as in `generate.logits`
    error: Error
    unexplained: int = 0  # tokens that only one side filters out, by more than noise explains
    hint: str | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether the error is beyond its threshold, but that is not certain."""
        return self.error.is_suspect and not self.unexplained

    def convicted(self) -> Self:
        """Returns the row without the benefit of the doubt."""
        return dataclasses.replace(self, error=dataclasses.replace(self.error, is_suspect=False))

    @property
    def measured(self) -> float:
        """The error that decides; infinite if the two sides filter out different tokens."""
        return math.inf if self.unexplained else self.error.measured

    @property
    def floor(self) -> float:
        """The noise floor of the error."""
        return self.error.floor

    @property
    def threshold(self) -> float:
        """The threshold of the error."""
        return self.error.threshold
