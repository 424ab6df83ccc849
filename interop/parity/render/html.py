"""Renders a report as one HTML page that needs no network, no script and no other file."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from jaxllm.interop.parity.levels.table import LEVELS
from jaxllm.interop.parity.report.report import ReportData
from jaxllm.interop.parity.report.rows import LossResult

from . import charts, details
from .heat_map import heat_map, legend
from .notes import notes
from .sentences import explanation, headline, hint, mark, number, place
from .summary_tables import levels_table, positions_table
from .table import Table

if TYPE_CHECKING:
    from jinja2 import Template


def render(report: ReportData) -> str:
    """Renders the whole report as HTML."""
    has_layers = "layers" in report.verdicts and "layers" not in report.unjudged
    return _template().render(
        report=report,
        headline=headline(report),
        explanation=_explanation(report),
        hint=hint(report),
        notes=notes(report),
        levels=levels_table(report),
        unclear=details.unclear_table(report.unclear),
        sections=list(_sections(report)),
        heat_map=heat_map(report) if has_layers else None,
        legend=list(legend()),
        profile_chart=charts.profile_chart(report) if has_layers else None,
        position_chart=charts.position_chart(report) if report.logits else None,
        positions=positions_table(report, report.logits) if report.logits else None,
    )


def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "mark": mark, "unbroken": _unbroken}
    return environment.get_template("report.html.jinja")


class Section(NamedTuple):
    """The section of the page for one level."""

    title: str
    caption: str
    table: Table
    chart: str | None  # SVG


def _sections(report: ReportData) -> Iterator[Section]:
    """Yields the sections of the levels that have something to show."""
    for level, rows in report.rows.items():
        table = details.level_table(rows)
        losses = [row for row in rows if isinstance(row, LossResult)]
        if table.rows:
            chart = charts.curve_chart(losses) if losses else None
            yield Section(LEVELS[level].title, LEVELS[level].caption, table, chart)


def _explanation(report: ReportData) -> tuple[str, str, str]:
    """Returns the verdict in a sentence, split around the name of the first divergence."""
    first, sentence = report.first_divergence, explanation(report)
    return sentence.partition(place(first)) if first else (sentence, "", "")


def _unbroken(sentence: str) -> str:
    """Keeps numbers such as 1e-7 on one line."""
    return re.sub(r"(\d)e-(\d)", "\\1e\N{NON-BREAKING HYPHEN}\\2", sentence)
