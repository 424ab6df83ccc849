"""The public parity report: the data of a comparison, which writes itself as a page or a table."""

from pathlib import Path

from rich.console import RenderableType

from .render import html, terminal
from .report import report


class Report(report.Report):
    """The verdicts of a comparison, and the figures behind them."""

    def write_html(self, path: str | Path) -> None:
        """Writes one page that needs nothing else: no network, no script, no other file."""
        Path(path).write_text(html.render(self), encoding="utf-8")

    def table(self) -> RenderableType:
        """The report for a terminal."""
        return terminal.render(self)
