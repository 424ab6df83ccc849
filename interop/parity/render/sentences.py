"""The sentences of a report: verdict, first divergence, likely cause, notes."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from jaxllm.interop.loading.name_folding import fold
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
from jaxllm.numerics.significance import LEAST_COMPARED

_MOST_NAMED = 4  # parameters in a sentence
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


def notes(report: ReportData) -> list[str]:
    """Returns the sentences on what else matters for the verdict, those that apply."""
    sentences = (
        *(nan_note(report), flips_note(report), unclear_note(report), texts_note(report)),
        *(unseen_note(report), unjudged_note(report), levels_note(report)),
        *(left_out_note(report), later_note(report), empty_note(report)),
    )
    return [*report.notes, *filter(None, sentences)]


def unseen_note(report: ReportData) -> str:
    """Returns a sentence on the windows that the inputs were too short to show, or ""."""
    if not report.unseen:
        return ""
    return (
        f"Cannot tell: {' and '.join(report.unseen)} would show only in inputs of more than these "
        f"{report.length} tokens; a wrong one passes."
    )


def levels_note(report: ReportData) -> str:
    """Returns a sentence that names the levels that were not compared, and why, or ""."""
    by_reason: dict[str, list[str]] = {}
    for level, reason in report.not_compared.items():
        by_reason.setdefault(reason, []).append(level)
    told = "; ".join(f"{', '.join(levels)} ({reason})" for reason, levels in by_reason.items())
    return f"Levels not compared: {told}." if told else ""


def later_note(report: ReportData) -> str:
    """Returns a sentence on the batches of later training steps, or ""."""
    later = report.later_batches
    return f"Training steps after the first are on {later}." if later else ""


def left_out_note(report: ReportData) -> str:
    """Returns a sentence that names the activations that could not be compared, or ""."""
    if not report.left_out:
        return ""
    names = (group.name for group in fold(dict.fromkeys(report.left_out)))
    return (
        "Not compared, since the reference does not show them as the model computes them: "
        f"{', '.join(names)}. A mistake there shows only in what follows from it."
    )


def unjudged_note(report: ReportData) -> str:
    """Returns a sentence on the levels that could not be compared, or ""."""
    levels = ", ".join(report.unjudged)
    return f"The sizes differ, so these levels were not compared: {levels}." if levels else ""


def empty_note(report: ReportData) -> str:
    """Returns a sentence on the levels at which there was nothing to compare, or ""."""
    empty = [one for one in report.verdicts if not report.rows[one] and one not in report.unjudged]
    return f"Nothing could be compared at: {', '.join(empty)}." if empty else ""


def unclear_note(report: ReportData) -> str:
    """Returns sentences on the rows in which a mistake worth knowing may hide, or ""."""
    arrays = [row for row in report.unclear if not isinstance(row, TextResult)]
    wide = [row for row in arrays if row.highest_threshold > row.useful]
    few = [row for row in arrays if row.compared < LEAST_COMPARED]
    found = _suspect_note(report), _wide_note(wide), _few_note(few), _direction_note(report)
    return " ".join(filter(None, found))


def _suspect_note(report: ReportData) -> str:
    """Returns sentences on the rows that more draws of rounding errors would decide, or ""."""
    suspects = [row for row in report.unclear if row.is_suspect]
    if not suspects:
        return ""
    worst = max(suspects, key=lambda row: row.ratio)
    are = "is" if len(suspects) == 1 else "are"
    return (
        f"{counted(suspects)} {are} beyond the threshold, of which few draws of rounding errors "
        f"cannot be certain: the worst is {name(worst)}, {number(worst.ratio)} times its threshold."
        f" `jaxllm parity`, where PyTorch is installed, takes more draws and decides."
    )


def _wide_note(wide: Sequence[Judged]) -> str:
    """Returns sentences on the rows with thresholds that are too high to be useful, or ""."""
    if not wide:
        return ""
    worst = max(wide, key=lambda row: row.highest_threshold)
    return (
        f"In {counted(wide)} rounding alone may cause an error of more than "
        f"{number(worst.useful)}, so that smaller mistakes cannot be seen there. The highest "
        f"threshold is {number(worst.highest_threshold)}, of {name(worst)}."
    )


def _few_note(few: Sequence[Judged]) -> str:
    """Returns a sentence on the rows of which next to nothing is compared, or ""."""
    if not few:
        return ""
    return (
        f"In {counted(few)} less than {LEAST_COMPARED:.0%} of the elements could be compared: the "
        f"others are noise."
    )


def texts_note(report: ReportData) -> str:
    """Returns a sentence on the texts of which the rest is unknown, or ""."""
    texts = [row for row in report.unclear if isinstance(row, TextResult)]
    if not texts:
        return ""
    return (
        f"In {counted(texts)} the generated texts diverge where rounding decides between tokens or "
        "beams; of what follows nothing can be told."
    )


def _direction_note(report: ReportData) -> str:
    """Returns a sentence on the rows that are judged outside of one direction, or ""."""
    wide = [
        row
        for rows in report.rows.values()
        for row in rows
        if row.threshold_along_direction > row.useful
    ]
    if not wide:
        return ""
    return (
        f"In {counted(wide)}, rounding errors share a direction; along it, a mistake of up to "
        f"{number(max(row.threshold_along_direction for row in wide))} cannot be seen."
    )


def nan_note(report: ReportData) -> str:
    """Returns a sentence that names the parameters with values that are not numbers, or ""."""
    found = [row for row in report.weights if row.num_nan]
    if not found:
        return ""
    names = ", ".join(f"{row.num_nan:,} in {place(row)}" for row in found[:_MOST_NAMED])
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return f"The model has weights that are NaN: {names}{more}."


def flips_note(report: ReportData) -> str:
    """Returns sentences on routers that select different experts, or "".

    After such a router, errors are no longer rounding errors.
    """
    sentences = []
    if first := next((row for row in report.flips if row.tokens), None):
        sentences.append(
            f"{first.path} is the first router to select other experts than the reference, for "
            f"{first.tokens} of {report.tokens} tokens. At these tokens, the last selected logit "
            f"is at most {number(first.margin)} above the next."
        )
    if noisy := next((row for row in report.flips if row.by_noise), None):
        sentences.append(
            f"Rounding noise alone changes the experts that the reference selects at {noisy.path} "
            f"for {noisy.by_noise} tokens."
        )
    return " ".join(sentences)


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
