"""What a parity level is made of: the stage that computes, and the level that judges and names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxllm.interop.parity.report.rows import Judged
from jaxllm.models import Model

from .pair import Ours, Pair


def no_details(found: Any) -> Mapping[str, Any]:
    """Nothing beside the rows."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One computation: run on both sides at once, or recorded and checked later without PyTorch.

    Levels that are judged by the same computation share a stage, which runs once for all of them.
    """

    name: str  # of its part of a pack
    compare: Callable[[Pair], Any]  # runs both sides; returns what the levels judge
    record: Callable[[Pair], Any]  # runs the reference; returns plain data and arrays for a pack
    check: Callable[[Any, Ours], Any]  # takes what was recorded; returns what `compare` does
    details: Callable[[Any], Mapping[str, Any]] = no_details  # fields of the report but its rows
    computes: bool = True  # False: it reads what both sides state, even where their sizes differ


@dataclass(frozen=True, kw_only=True)
class Level:
    """One thing to hold to the reference: how it is judged, and what reports call it."""

    name: str
    stage: Stage
    rows: Callable[[Any], Iterable[Judged]] = tuple  # judges what the stage returned
    noun: str  # what a row is about, in the plural
    title: str  # of its section of a page
    caption: str
    causes: tuple[str, ...] = ()  # levels whose errors cause errors here: their rows come first
    exists_for: Callable[[Model], bool] = lambda model: True
    by_default: bool = True  # whether a checkpoint is compared at it unasked
