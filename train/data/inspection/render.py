"""Renders a summary of data: tables and rows for a terminal, and one HTML page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .summary import DataSummary, ShownRow, SourceSummary

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ("source", "rows", "tokens", "share", "filled", "learned", "docs/row", "lengths")
LEGEND = (
    "share: of the tokens trained on; filled: places of rows with a token; learned: tokens that "
    "are targets; lengths: shortest/median/90 %/longest document or piece"
)


def render_terminal(summary: DataSummary) -> "Iterator[RenderableType]":
    """Yields a table of the sources and the rows that are shown, what is no target dimmed."""
    from rich.table import Table
    from rich.text import Text

    from jaxllm.untrusted.printable import literal, printable

    table = Table(*COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for source in summary.sources:
        table.add_row(*map(literal, cells(source)))
    yield table
    yield Text(LEGEND, style="dim")
    for number, row in enumerate(summary.shown, start=1):
        yield Text(f"\n{heading(number, row)}", style="bold")
        for document in row.documents:
            text = Text("")
            for piece in document:
                text.append(printable(piece.text), style=None if piece.is_target else "dim")
            yield text


def render_page(summary: DataSummary, title: str) -> str:
    """Returns a page that needs no other file."""
    import jinja2

    from jaxllm.untrusted.printable import printable

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("data.html.jinja").render(
        title=title,
        summary=summary,
        columns=COLUMNS,
        legend=LEGEND,
        cells=[cells(source) for source in summary.sources],
        headings=[heading(number, row) for number, row in enumerate(summary.shown, start=1)],
    )
    return printable(page)


def cells(source: SourceSummary) -> list[str]:
    """Returns the figures of a source as texts, by `COLUMNS`."""
    return [
        source.name or "all",
        f"{source.rows:,}",
        f"{source.tokens:,}",
        f"{source.share:.1%}",
        f"{source.filled:.1%}",
        f"{source.learned:.1%}",
        f"{source.documents:.2f}",
        "/".join(f"{length:,}" for length in source.lengths.values()),
    ]


def heading(number: int, row: ShownRow) -> str:
    """Returns the line above a row."""
    source = f"  {row.source}" if row.source else ""
    return (
        f"row {number}{source}  documents {len(row.documents)}  tokens {row.tokens:,}  "
        f"targets {row.targets:,}  padding {row.padding:,}"
    )
