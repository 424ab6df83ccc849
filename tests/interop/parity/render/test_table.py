"""A table of text is drawn with the same cells in a terminal and on a page."""

import html
import io
import re

import pytest
from parity_reports import REPORTS, tap, with_rows
from rich.console import Console

from jaxllm.interop.parity.render import html as page
from jaxllm.interop.parity.render import summary_tables, terminal

TABLES = {
    "levels": summary_tables.levels_table,
    "positions": lambda report: summary_tables.positions_table(report, report.logits),
}


def words(text: str) -> str:
    """The text without line breaks and runs of spaces, in which columns differ."""
    return " ".join(text.split())


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_both_draw_every_column_and_number(report, table):
    drawn = table(report)
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal.render(report))
    texts = words(console.export_text()), words(html.unescape(page.render(report)))
    numbers = {cell for row in drawn.rows for cell in row.cells[drawn.num_text_columns :]}
    assert numbers
    for text in texts:
        assert all(cell in text for cell in numbers)
        assert drawn.columns[0] in text


def test_a_row_beyond_its_threshold_is_red_on_a_page():
    bad = {name: page.render(report).count('<tr class="bad">') for name, report in REPORTS.items()}
    assert bad["honest"] == 0
    assert bad["broken"] > 0


def test_rows_that_are_left_out_are_counted_on_a_page():
    wrong = tuple(tap(f"layers.{i}.mlp", 1.0) for i in range(20))
    shown = page.render(with_rows(REPORTS["broken"], layers=wrong))
    [omitted] = re.findall(r"(\d+) more exceed their thresholds", shown)
    assert int(omitted) > 0
    assert "more exceed" not in page.render(REPORTS["broken"])
