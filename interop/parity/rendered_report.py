"""The public parity report: its data, with methods that render it as HTML or for a terminal."""

from pathlib import Path

from rich.console import RenderableType

from jaxllm.storage.whole_file import write_whole
from jaxllm.untrusted.printable import printable

from .render import html, terminal
from .report import report


class Report(report.ReportData):
    """The verdicts of a comparison and the figures behind them.

    `print(report.ok)` says whether parity holds, `rich.print(report.table())` shows the report on
    a terminal, and `report.to_json()` returns all figures.
    """

    def write_html(self, path: str | Path) -> None:
        """Writes a self-contained HTML page: no network, no script, no other file."""
        write_whole(path, printable(html.render(self)))

    def table(self) -> RenderableType:
        """Returns the report as a rich renderable for the terminal."""
        return terminal.render(self)
