"""Types of parity levels: a stage computes, a level judges its results and names them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from jaxllm.interop.parity.report.judged import Judged
from jaxllm.models import Model

from .sides import Comparison, JaxSide


def no_details(found: Any) -> Mapping[str, Any]:
    """Returns no report fields besides the rows."""
    return {}


def both_digests(what: str, lines: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns a SHA-256 for each side of pairs of lines, in whatever order they are."""
    sides = zip(*sorted(lines), strict=True) if lines else ((), ())
    return {
        f"{what} of the {side}": sha256("\n".join(sorted(own)).encode()).hexdigest()
        for side, own in zip(("model", "reference"), sides, strict=True)
    }


def no_runs(levels: Sequence[str], draws: int) -> int:
    """Returns that nothing is run, at whatever levels."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One computation: run on both sides at once, or recorded and checked later without PyTorch.

    Levels that are judged by the same computation share a stage, which runs once for all of them.
    """

    name: str  # also its key in a pack
    compare: Callable[[Comparison], Any]  # runs both sides; returns what the levels judge
    record: Callable[[Comparison], Any]  # runs the reference; returns data and arrays for a pack
    check: Callable[[Any, JaxSide], Any]  # takes recorded data; returns the same as `compare`
    details: Callable[[Any], Mapping[str, Any]] = no_details  # report fields besides the rows
    digests: Callable[[Any], Mapping[str, str]] = no_details  # of what it read of each side
    # Of the models, in a comparison at some levels with some draws of rounding errors.
    runs: Callable[[Sequence[str], int], int] = no_runs
    computes: bool = True  # False: only reads both sides, so it works even where sizes differ


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a comparison: how its rows are judged, and its texts in reports."""

    name: str
    stage: Stage
    rows: Callable[[Any], Iterable[Judged]] = tuple  # judges what the stage returned
    noun: str  # what its rows are, in the plural
    title: str  # of its section of the HTML page
    caption: str
    causes: tuple[str, ...] = ()  # levels whose errors cause errors here; reported before this one
    # Why it does not exist for a model, as a phrase; "" if it exists.
    obstacle: Callable[[Model], str] = lambda model: ""
    by_default: bool = True  # whether `check_checkpoint` runs it unless told otherwise

    def exists_for(self, model: Model) -> bool:
        """Whether a model can be compared at this level."""
        return not self.obstacle(model)
