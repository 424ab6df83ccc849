"""The page's sections on the levels beyond the forward pass: tables of the rows that matter."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

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
)

from .charts import curve_chart
from .summary import name, number, parameter

SHOWN = 12  # of the rows of a level: all that are wrong come first
Section = tuple[str, str, str]  # title, caption, content
Cells = tuple[bool, Sequence[str]]  # whether the row is wrong, and its cells


def level_sections(report: Report) -> Iterator[Section]:
    """What there is to show of each level that was asked for, by the kind of its rows."""
    for level, rows in report.rows.items():
        show = _SHOW.get(type(rows[0]), _differing) if rows else _differing
        if content := show(rows):
            yield LEVELS[level].title, LEVELS[level].caption, content


def _fields(results: Sequence[FieldResult]) -> str:
    rows = [(True, [row.path, row.ours, row.theirs]) for row in results if not row.ok]
    return table(("field", "ours", "the reference's"), rows) if rows else ""


def _differing(results: Sequence[Judged]) -> str:
    """The rows of any kind that differ."""
    wrong = [row for row in results if not row.ok]
    rows = [
        (True, [name(row), *map(number, (row.measured, row.floor, row.threshold))])
        for row in wrong[:SHOWN]
    ]
    return table(("row", "error", "noise", "threshold"), rows) + _more(len(wrong)) if rows else ""


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


def _weights(results: Sequence[WeightResult]) -> str:
    wrong = [row for row in results if not row.ok]
    rows = [
        (True, [parameter(row), f"{row.differing_bits:,} of {row.num_bits:,}", row.remark])
        for row in wrong[:SHOWN]
    ]
    head = ("parameter", "differing bits", "why")
    return table(head, rows) + _more(len(wrong)) if rows else ""


def _steps(results: Sequence[TapResult]) -> str:
    taps = [tap for tap in results if tap.is_wrong_itself]
    rows = []
    for tap in taps[:SHOWN]:
        own = tap.forced or tap.cumulative
        errors = (own.relative_l2, own.floor, own.threshold, tap.cumulative.relative_l2)
        rows.append((True, [tap.path, *map(number, errors)]))
    head = ("step", "own error", "noise", "threshold", "error with all before")
    return table(head, rows) + _more(len(taps)) if rows else ""


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


def _texts(results: Sequence[TextResult | ScoresResult]) -> str:
    rows = []
    for row in results:
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


# How the rows of a level are shown, by their kind.
_SHOW: Mapping[type, Callable[[Sequence[Any]], str]] = {
    FieldResult: _fields,
    WeightResult: _weights,
    TapResult: _steps,
    TensorResult: _tensors,
    LossResult: curve_chart,
    TextResult: _texts,
    ScoresResult: _texts,
}
