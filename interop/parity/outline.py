"""A report's rows arranged for the eye, and its numbers and verdict in words."""

import dataclasses
import re
from collections.abc import Iterable

from .report import Report, TapResult

_IN_A_LAYER = re.compile(r"(.*?\.\d+)(?:\.(.+))?")


@dataclasses.dataclass(frozen=True)
class Outline:
    """The taps within layers by layer and step, and those before and after them."""

    before: tuple[TapResult, ...]
    layers: dict[str, dict[str, TapResult]]  # as in `["layers.7"]["mlp"]`
    after: tuple[TapResult, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of any layer, in execution order."""
        return tuple(dict.fromkeys(step for taps in self.layers.values() for step in taps))


def outline(taps: Iterable[TapResult]) -> Outline:
    """Sorts taps by where they are. What a layer returns as a whole is its step `output`."""
    before: list[TapResult] = []
    after: list[TapResult] = []
    layers: dict[str, dict[str, TapResult]] = {}
    for tap in taps:
        if found := _IN_A_LAYER.fullmatch(tap.path):
            layer, step = found.groups()
            layers.setdefault(layer, {})[step or "output"] = tap
        else:
            (after if layers else before).append(tap)
    return Outline(tuple(before), layers, tuple(after))


def tightest(taps: Iterable[TapResult]) -> TapResult:
    """The tap that is closest to its threshold, or the first one beyond it."""
    taps = tuple(taps)
    beyond = next((tap for tap in taps if not tap.ok), None)
    return beyond or max(taps, key=lambda tap: tap.ratio)


def headline(report: Report) -> str:
    """The verdict in three words."""
    return "Parity holds" if report.ok else "Parity is broken"


def explanation(report: Report) -> str:
    """The verdict in a sentence."""
    if first := report.first_divergence:
        return (
            f"{first.path} is the first step to differ by more than rounding: its relative L2 "
            f"error is {number(first.measured)}, the threshold {number(first.threshold)}."
        )
    closest = tightest(report.taps)
    return (
        f"Nothing differs by more than rounding. Closest to its threshold came {closest.path}, "
        f"with a relative L2 error of {number(closest.measured)} of {number(closest.threshold)}."
    )


def number(value: float) -> str:
    """An error in two digits."""
    if value == 0:
        return "0"
    return f"{value:#.2g}" if 0.01 <= value < 10 else f"{value:.1e}"
