"""The sentences of a report: verdict, first divergence, likely cause."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from jaxllm.interop.parity.levels.table import LEVELS
from jaxllm.interop.parity.report.activation_rows import TapResult, first_wrong
from jaxllm.interop.parity.report.judged import Judged
from jaxllm.interop.parity.report.report import ReportData
from jaxllm.interop.parity.report.rows import (
    FieldResult,
    OutputResult,
    TensorResult,
    TextResult,
    WeightResult,
)

AnyRow = TypeVar("AnyRow", bound=Judged)


def mark(ok: bool) -> str:
    """Returns a check mark or a cross."""
    return "✓" if ok else "✗"


def headline(report: ReportData) -> str:
    """Returns the verdict as a headline, with what cannot tell: rows, and unseen windows."""
    holds, broken = report.headlines
    if not report.ok:
        return broken
    open_ = [*([counted(report.unclear)] if report.unclear else []), *report.unseen]
    return f"{holds}; {' and '.join(open_)} cannot tell" if open_ else holds


def counted(rows: Sequence[Judged]) -> str:
    """Returns how many rows there are, in words."""
    return "1 row" if len(rows) == 1 else f"{len(rows)} rows"


def explanation(report: ReportData) -> str:
    """Returns a sentence on the first divergence or else on the error closest to failing."""
    if first := report.first_divergence:
        return f"{name(first)} {describe_failure(first)}."
    inexact = [row for rows in report.rows.values() for row in rows if row.threshold]
    if not inexact:
        return "Nothing differs."
    closest = worst_row(inexact)
    is_within = "No error is certainly beyond" if closest.is_suspect else "Every error is within"
    return (
        f"{is_within} its threshold. The closest to failing is {name(closest)}: error "
        f"{number(closest.measured)}, threshold {number(closest.threshold)}."
    )


def hint(report: ReportData) -> str:
    """Returns the likely cause of the first divergence or first wrong activation, or ""."""
    first, wrong = report.first_divergence, first_wrong(report.taps)
    if first is None:
        return ""
    if first.hint:
        return f"{first.hint}."
    return f"At {wrong.path}: {wrong.hint}." if wrong is not None and wrong.hint else ""


def worst_row(rows: Iterable[AnyRow]) -> AnyRow:
    """Returns the first row that fails or, if there is none, the row closest to failing.

    Among failing activations, those that are wrong on their own come first.
    """
    rows = tuple(rows)
    beyond = [row for row in rows if not row.ok]
    themselves = [row for row in beyond if isinstance(row, TapResult) and row.is_wrong_itself]
    return next(iter(themselves or beyond), None) or max(rows, key=lambda row: row.ratio)


def name(row: Judged) -> str:
    """Returns the name of what a row compares, for use in sentences."""
    return f"the {row.what} of {place(row)}" if isinstance(row, TensorResult) else place(row)


def place(row: Judged) -> str:
    """Returns the dotted path of the parameter, activation or field that a row compares."""
    if isinstance(row, TensorResult | WeightResult):
        return ".".join(part for part in (row.path, row.parameter) if part)
    return row.path


def describe_failure(row: Judged) -> str:
    """Returns what is wrong with a row, to complete a sentence that begins with its name."""
    if isinstance(row, FieldResult):
        return f"is {row.ours or 'unknown'} in the model, {row.theirs} in the reference"
    if isinstance(row, WeightResult):
        why = f": {row.remark}" if row.remark else ""
        how = (
            "(digest)"
            if row.differing_bits is None
            else f"in {row.differing_bits:,} of {row.num_bits:,} bits"
        )
        return f"differs {how}{why}"
    if isinstance(row, TextResult):
        return (
            f"differs from the reference in {row.measured:.0f} of {len(row.theirs)} tokens, after "
            f"a prompt of {row.prompt_tokens} tokens"
        )
    if isinstance(row, OutputResult):
        return _describe_outputs(row)
    errors = f"error {number(row.measured)}, threshold {number(row.threshold)}"
    if isinstance(row, TapResult) and row.is_wrong_itself:
        return (
            "is the first activation that is wrong even when computed from the reference's inputs: "
            + errors
        )
    return f"is the first to differ by more than rounding: {errors}"


def _describe_outputs(row: OutputResult) -> str:
    found = f"differ by {number(row.relative_l2)} in relative L2, at most {number(row.max_abs)}"
    if row.kl_mean is None or row.kl_max is None or row.top1_agreement is None:
        return found
    return (
        f"{found}; mean KL {number(row.kl_mean)} nats, largest {number(row.kl_max)}; same top-1 "
        f"token at {row.top1_agreement:.1%}"
    )


def compared(level: str, report: ReportData) -> str:
    """Returns how much a level compared, and how much of that differs."""
    rows, noun = report.rows[level], LEVELS[level].noun
    if level in report.unjudged or not rows:
        return "not compared"
    found = _count(rows, noun, report)
    unclear = sum(row.verdict == "cannot tell" for row in rows)
    return f"{found}, {unclear} cannot tell" if unclear else found


def _count(rows: Sequence[Judged], noun: str, report: ReportData) -> str:
    if any(isinstance(row, WeightResult) for row in rows):
        tensors = {name for row in rows for name in row.stored}
        if any(row.differing_bits is None for row in rows):
            return f"{len(tensors)} {noun}, {sum(not row.ok for row in rows)} differ (digest)"
        differing = sum(row.differing_bits for row in rows)
        bits = sum(row.num_bits for row in rows)
        return f"{len(tensors)} {noun}, {differing:,} of {bits:,} bits differ"
    if any(isinstance(row, TapResult) and row.is_output for row in rows):
        return f"{report.tokens} {noun}"
    if any(isinstance(row, TextResult) for row in rows):
        texts = [row for row in rows if isinstance(row, TextResult)]
        tokens = sum(len(row.theirs) for row in texts)
        ties = sum(row.is_tie for row in texts)
        found = f"{len(texts)} {noun}, {tokens} tokens"
        return f"{found}, {ties} diverge at a tie" if ties else found
    return f"{len(rows)} {noun}, {sum(not row.ok for row in rows)} differ"


def number(value: float) -> str:
    """Formats an error with two significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:#.2g}" if 0.01 <= value < 10 else f"{value:.1e}"
