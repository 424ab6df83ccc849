"""The notes of a report: sentences on what else matters for the verdict."""

from collections.abc import Sequence

from jaxllm.interop.loading.name_folding import fold
from jaxllm.interop.parity.report.judged import Judged
from jaxllm.interop.parity.report.report import ReportData
from jaxllm.interop.parity.report.rows import TextResult
from jaxllm.numerics.significance import LEAST_COMPARED

from .sentences import counted, name, number, place

_MOST_NAMED = 4  # parameters in a sentence


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
