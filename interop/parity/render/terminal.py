"""Renders a report for the terminal: the verdict, and tables of levels, layers and positions."""

from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from jaxllm.interop.parity.report.report import ReportData
from jaxllm.untrusted.printable import literal, printable

from .notes import notes
from .sentences import explanation, headline, hint, mark
from .summary_tables import layers_table, levels_table, positions_table
from .table import Row, Table

MIN_WIDTH = 72  # of a terminal that shows the whole table of layers


class _Layers(NamedTuple):
    """The table of layers, without the noise floors in a terminal that is too narrow for them."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self.table
        if options.max_width < MIN_WIDTH:
            shown = shown.without("noise floor")
        yield _draw(shown, "Relative L2 error of each layer's worst activation")


def render(report: ReportData) -> RenderableType:
    """Renders the whole report, 80 columns wide if there is room; 60 are enough."""
    parts: list[RenderableType] = [_verdict(report), _draw(_narrow(levels_table(report)))]
    if "layers" in report.verdicts and "layers" not in report.unjudged:
        parts.append(_Layers(layers_table(report)))
    if report.logits is not None:
        parts.append(_draw(positions_table(report, report.logits), "Logits by position"))
    return Group(*parts)


def _verdict(report: ReportData) -> Panel:
    levels = "   ".join(
        f"{mark(held)}\N{NO-BREAK SPACE}{level}" for level, held in report.verdicts.items()
    )
    lines = [explanation(report), hint(report), *notes(report), levels]
    return Panel(
        literal("\n\n".join(filter(None, lines))),
        title=Text(printable(headline(report)), style="bold"),
        subtitle=literal(f"{report.tokens} tokens: {report.inputs}; {report.dtype}"),
        border_style="green" if report.ok else "red",
        title_align="left",
        subtitle_align="left",
        width=80,
    )


def _narrow(levels: Table) -> Table:
    """Drops the column of decisive rows; names the row next to the level only where it fails."""
    rows = []
    for (level, compared, decisive, *figures), ok in levels.rows:
        where = f": {decisive}" if decisive and not ok else ""
        rows.append(Row((level, compared + where, *figures), ok))
    return Table((*levels.columns[:2], *levels.columns[3:]), tuple(rows), num_text_columns=2)


def _draw(table: Table, title: str | None = None) -> RichTable:
    """Draws a table for the terminal: numbers in narrow columns, failing rows in red."""
    drawn = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD)
    for at, column in enumerate(table.columns):
        if at < table.num_text_columns:
            drawn.add_column(column, overflow="fold")
        else:  # headers wrap between words, numbers never do
            words = (*column.split(), *(row.cells[at] for row in table.rows))
            drawn.add_column(column, justify="right", width=max(map(len, words)))
    for row in table.rows:
        drawn.add_row(*map(literal, row.cells), style=None if row.ok else "red")
    return drawn
