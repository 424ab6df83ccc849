"""A report for the terminal: the verdict, the layers at a glance, the positions."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jaxllm.interop.parity.report.report import Bucket, LogitsResult, Report
from jaxllm.interop.parity.report.rows import TapResult

from .summary import (
    compared,
    explanation,
    flips_note,
    headline,
    hint,
    name,
    number,
    outline,
    tightest,
    unjudged_note,
)


def render(report: Report) -> RenderableType:
    """The whole report, about 80 columns wide."""
    color = "green" if report.ok else "red"
    levels = "   ".join(
        f"{'✓' if held else '✗'} {level}" for level, held in report.verdicts.items()
    )
    notes = (hint(report), flips_note(report), unjudged_note(report))
    lines = [explanation(report), *notes, levels]
    verdict = Panel(
        Text("\n\n".join(filter(None, lines))),
        title=f"[bold]{headline(report)}",
        subtitle=f"{report.tokens} tokens, float32",
        border_style=color,
        title_align="left",
        subtitle_align="left",
        width=80,
    )
    parts: list[RenderableType] = [verdict, _levels(report)]
    if "layers" in report.verdicts and "layers" not in report.unjudged:
        parts.append(_steps(report))
    if report.logits is not None:
        parts.append(_positions(report, report.logits))
    return Group(*parts)


def _levels(report: Report) -> Table:
    """A row for each level, with what came closest to its threshold or first went beyond it."""
    table = Table("level", "compared", box=SIMPLE_HEAD)
    for column in ("error", "noise", "threshold"):
        table.add_column(column, justify="right")
    for level in report.rows:
        if level not in report.verdicts:
            continue
        rows = report.rows[level]
        worst = tightest(rows) if rows else None
        figures = ["", "", ""]
        if worst is not None and worst.threshold:
            figures = [number(x) for x in (worst.measured, worst.floor, worst.threshold)]
        where = "" if worst is None or worst.ok else f": {name(worst)}"
        style = None if report.verdicts[level] else "red"
        table.add_row(level, compared(level, report) + where, *figures, style=style)
    return table


def _steps(report: Report) -> Table:
    """A row for each layer, with its first step beyond its threshold, or closest to it."""
    table = Table("", "step", title="Relative L2 error", title_justify="left", box=SIMPLE_HEAD)
    for column in ("error", "own error", "noise", "threshold", "of threshold"):
        table.add_column(column, justify="right")
    parts = outline(report.taps)
    for tap in parts.before:
        _add_row(table, tap.path, "", tap)
    for layer, steps in parts.layers.items():
        tap = tightest(steps.values())
        _add_row(table, layer, next(step for step, t in steps.items() if t is tap), tap)
    for tap in parts.after:
        _add_row(table, tap.path, "", tap)
    return table


def _add_row(table: Table, place: str, step: str, tap: TapResult) -> None:
    own = tap.forced or tap.cumulative
    errors = (tap.cumulative.relative_l2, own.relative_l2, tap.floor, tap.threshold)
    figures = map(number, errors)
    share = f"{tap.ratio:.2f}" if tap.ok else f"✗ {number(tap.ratio)}"
    table.add_row(place, step, *figures, share, style=None if tap.ok else "red")


def _positions(report: Report, logits: LogitsResult) -> Table:
    """A row for each bucket of positions, and one for all."""
    table = Table("position", title="Logits", title_justify="left", box=SIMPLE_HEAD)
    for column in ("tokens", "rel. L2", "KL mean", "KL max", "same top 1"):
        table.add_column(column, justify="right")
    rows: list[tuple[str, int, Bucket | LogitsResult]] = [
        *((bucket.label, bucket.tokens, bucket) for bucket in report.buckets),
        ("all", report.tokens, logits),
    ]
    for label, tokens, result in rows:
        figures = map(number, (result.relative_l2, result.kl_mean, result.kl_max))
        table.add_row(label, str(tokens), *figures, f"{result.top1_agreement:.2%}")
    return table
