"""A report's rows arranged for the eye, and its numbers and verdict in words."""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import TypeVar

from jaxllm.interop.parity.levels.table import LEVELS
from jaxllm.interop.parity.report.report import Report
from jaxllm.interop.parity.report.rows import (
    FieldResult,
    Judged,
    LossResult,
    ScoresResult,
    TapResult,
    TensorResult,
    TextResult,
    WeightResult,
    first_wrong,
)

Row = TypeVar("Row", bound=Judged)

_IN_A_LAYER = re.compile(r"(.*?\.\d+)(?:\.(.+))?")


@dataclasses.dataclass(frozen=True)
class Outline:
    """The taps within layers by layer and step, and those before and after them."""

    before: tuple[TapResult, ...]
    layers: dict[str, dict[str, TapResult]]  # as in `["layers.7"]["mlp"]`
    after: tuple[TapResult, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of any layer, in execution order: each after the one before it in its layer."""
        order: list[str] = []
        for taps in self.layers.values():
            place = 0
            for step in taps:
                if step not in order:
                    order.insert(place, step)
                place = order.index(step) + 1
        return tuple(order)


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


def tightest(rows: Iterable[Row]) -> Row:
    """The row that is closest to its threshold, or the first one beyond it."""
    rows = tuple(rows)
    beyond = [row for row in rows if not row.ok]
    themselves = [row for row in beyond if isinstance(row, TapResult) and row.is_wrong_itself]
    return next(iter(themselves or beyond), None) or max(rows, key=lambda row: row.ratio)


def headline(report: Report) -> str:
    """The verdict in three words."""
    return "Parity holds" if report.ok else "Parity is broken"


def explanation(report: Report) -> str:
    """The verdict in a sentence."""
    if first := report.first_divergence:
        return f"{name(first)} {complaint(first)}."
    inexact = [row for rows in report.rows.values() for row in rows if row.threshold]
    if not inexact:
        return "Nothing differs."
    closest = tightest(inexact)
    return (
        f"Nothing differs by more than rounding. Closest to its threshold came {name(closest)}, "
        f"with an error of {number(closest.measured)} of {number(closest.threshold)}."
    )


def hint(report: Report) -> str:
    """What the first divergence looks like or, if it is no step, the first wrong step."""
    first, step = report.first_divergence, first_wrong(report.taps)
    if first is None:
        return ""
    if first.hint:
        return f"{first.hint}."
    return f"At {step.path}: {step.hint}." if step is not None and step.hint else ""


def unjudged_note(report: Report) -> str:
    """That levels were not judged, if they were not."""
    levels = ", ".join(report.unjudged)
    return f"The sizes differ, so nothing was computed: {levels} not judged." if levels else ""


def name(row: Judged) -> str:
    """What a row is about."""
    if isinstance(row, TensorResult):
        return f"the {row.what} of {parameter(row)}"
    return parameter(row) if isinstance(row, WeightResult) else row.path


def parameter(row: TensorResult | WeightResult) -> str:
    """The dotted name of the parameter that a row is about."""
    return ".".join(part for part in (row.path, row.parameter) if part)


def complaint(row: Judged) -> str:
    """What is wrong with a row, as the rest of a sentence that starts with its name."""
    if isinstance(row, FieldResult):
        return f"is {row.ours or 'unknown'} in the model, {row.theirs} in the reference"
    if isinstance(row, WeightResult):
        why = f": {row.remark}" if row.remark else ""
        return f"differs in {row.differing_bits:,} of {row.num_bits:,} bits{why}"
    if isinstance(row, TextResult):
        return (
            f"after {row.prompt_tokens} tokens: {row.measured:.0f} of {len(row.theirs)} tokens "
            "are others than the reference's"
        )
    if isinstance(row, TapResult) and row.is_wrong_itself:
        return (
            "is the first step that is wrong by itself: of what the reference's steps before it "
            f"returned it makes something with a relative L2 error of {number(row.measured)}, the "
            f"threshold is {number(row.threshold)}"
        )
    kind = "relative" if isinstance(row, LossResult) else "relative L2"
    what = "step" if isinstance(row, TapResult) else "thing"
    return (
        f"is the first {what} to differ by more than rounding: its {kind} error is "
        f"{number(row.measured)}, the threshold {number(row.threshold)}"
    )


def compared(level: str, report: Report) -> str:
    """What a level compared, in a few words that depend on the kind of its rows."""
    rows, noun = report.rows[level], LEVELS[level].noun
    if level in report.unjudged:
        return "not judged"
    if any(isinstance(row, WeightResult) for row in rows):
        tensors = {name for row in rows for name in row.stored}
        differing = sum(row.differing_bits for row in rows)
        bits = sum(row.num_bits for row in rows)
        return f"{len(tensors)} {noun}, {differing:,} of {bits:,} bits differ"
    if any(isinstance(row, TapResult) and row.is_output for row in rows):
        return f"{report.tokens} tokens"
    if any(isinstance(row, TextResult | ScoresResult) for row in rows):
        texts = [row for row in rows if isinstance(row, TextResult)]
        tokens = sum(len(row.theirs) for row in texts)
        ties = sum(row.is_tie for row in texts)
        part = f", {ties} part at a tie" if ties else ""
        return f"{len(texts)} {noun}, {tokens} tokens{part}"
    return f"{len(rows)} {noun}, {_count_wrong(rows)} differ"


def _count_wrong(rows: Iterable[Judged]) -> int:
    return sum(not row.ok for row in rows)


def flips_note(report: Report) -> str:
    """What routers did otherwise, if they did: from there on errors are not those of rounding."""
    ours = [row for row in report.flips if row.tokens]
    sentences = []
    if ours:
        first = ours[0]
        sentences.append(
            f"{first.path} is the first router to send tokens to other experts, {first.tokens} of "
            f"{report.tokens}, where its logits are up to {number(first.margin)} apart."
        )
    if noisy := next((row for row in report.flips if row.by_noise), None):
        sentences.append(
            f"The reference itself sends {noisy.by_noise} tokens of {noisy.path} to other experts "
            "when it is computed in other ways."
        )
    return " ".join(sentences)


def number(value: float) -> str:
    """An error in two digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:#.2g}" if 0.01 <= value < 10 else f"{value:.1e}"
