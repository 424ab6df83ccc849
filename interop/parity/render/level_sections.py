"""The page's sections on the levels beyond the forward pass: tables of the rows that matter."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from jaxllm.interop.parity.report.report import Report
from jaxllm.interop.parity.report.rows import (
    ScoresResult,
    TapResult,
    TensorResult,
    TextResult,
    WeightResult,
)

from .charts import curve_chart
from .summary import number, parameter

SHOWN = 12  # of the rows of a level: all that are wrong come first
Section = tuple[str, str, str]  # title, caption, content
Cells = tuple[bool, Sequence[str]]  # whether the row is wrong, and its cells


def level_sections(report: Report) -> Iterator[Section]:
    """What there is to show of each level that was asked for."""
    if wrong := [row for row in report.config if not row.ok]:
        rows = [(True, [row.path, row.ours, row.theirs]) for row in wrong]
        yield "Config", "Fields that differ.", table(("field", "ours", "the reference's"), rows)
    if unlike := [row for row in report.weights if not row.ok]:
        yield "Weights", "Parameters of which bits differ.", _weights(unlike)
    if wrong_steps := [tap for tap in report.taps if tap.is_wrong_itself]:
        caption = "Their own errors, of what the reference's steps before them returned."
        yield "Steps that are wrong by themselves", caption, _steps(wrong_steps)
    if report.gradients:
        parameters = len(report.gradients) - 1
        caption = f"Of the loss and {parameters} parameters those closest to their thresholds."
        yield "Gradients", caption, _tensors(report.gradients)
    if report.step:
        caption = "After one step of AdamW: both moments, and the update where it is not noise."
        yield "One step", caption, _tensors(report.step)
    if report.curve:
        caption = (
            "The same batches on both sides. Left the loss, right its relative difference with "
            "its threshold and noise."
        )
        yield "Training", caption, curve_chart(report)
    if report.generate:
        yield "Generation", "Greedy and beam search out of a cache.", _texts(report)


def table(head: Iterable[str], rows: Iterable[Cells]) -> str:
    """A table whose first column is text, and the next ones too if their heads say so."""
    head = tuple(head)
    words = {"compared": "left3", "what": "left2", "ours": "left3", "why": "left3"}
    css = next((css for name, css in words.items() if name in head[1:3]), "")
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        ('<tr class="bad">' if is_wrong else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for is_wrong, cells in rows
    )
    return f'<table class="{css}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _weights(rows: Sequence[WeightResult]) -> str:
    cells = [
        (True, [parameter(row), f"{row.differing_bits:,} of {row.num_bits:,}", row.remark])
        for row in rows[:SHOWN]
    ]
    return table(("parameter", "differing bits", "why"), cells) + _more(len(rows))


def _steps(taps: Sequence[TapResult]) -> str:
    rows = []
    for tap in taps[:SHOWN]:
        own = tap.forced or tap.cumulative
        errors = (own.relative_l2, own.floor, own.threshold, tap.cumulative.relative_l2)
        rows.append((True, [tap.path, *map(number, errors)]))
    head = ("step", "own error", "noise", "threshold", "error with all before")
    return table(head, rows) + _more(len(taps))


def _tensors(results: Sequence[TensorResult]) -> str:
    ranked = sorted(results, key=lambda row: row.ratio, reverse=True)
    rows = [
        (
            not row.ok,
            [
                parameter(row),
                row.what,
                *map(number, (row.relative_l2, row.floor, row.threshold)),
                "all" if row.relative_to == "all" else "its own",
                f"{row.compared:.0%}",
            ],
        )
        for row in ranked[:SHOWN]
    ]
    head = ("parameter", "what", "error", "noise", "threshold", "relative to", "compared of it")
    wrong = sum(not row.ok for row in results)
    return table(head, rows) + _more(wrong)


def _more(wrong: int) -> str:
    return f'<p class="caption">and {wrong - SHOWN} more</p>' if wrong > SHOWN else ""


def _texts(report: Report) -> str:
    rows = []
    for row in report.generate:
        how = row.path.partition(".")[2]
        if isinstance(row, ScoresResult):
            figures = f"relative L2 {number(row.relative_l2)} of {number(row.threshold)}"
            filtered = f", {row.unexplained} tokens filtered otherwise" if row.unexplained else ""
            rows.append((not row.ok, [how, "every token's logits", figures + filtered]))
        elif isinstance(row, TextResult):
            pairs = zip(row.ours, row.theirs, strict=False)
            equal = sum(a == b for a, b in pairs)
            tie = ", parted at a tie" if row.is_tie else ""
            found = f"{equal} of {len(row.theirs)} tokens equal{tie}"
            rows.append((not row.ok, [how, f"prompt of {row.prompt_tokens} tokens", found]))
    return table(("how", "what", "found"), rows)
