"""The public report renders itself as an HTML page and as a terminal table."""

import io

from rich.console import Console

from jaxllm.interop.parity import Report
from jaxllm.interop.parity.report.rows import FieldResult


def make_report() -> Report:
    return Report(
        subject="tiny",
        verdicts={"config": False},
        rows={"config": (FieldResult("config.size", "1", "2"),)},
        batch_size=1,
        length=2,
        tokens=2,
        seed=None,
        dtypes={},
        versions={},
        tolerance={"false_alarms": 1e-3, "draws": 4, "draws_to_decide": 20},
    )


def test_write_html_writes_the_page(tmp_path):
    make_report().write_html(tmp_path / "parity.html")
    page = (tmp_path / "parity.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "config.size" in page


def test_table_renders_for_a_terminal():
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(make_report().table())
    text = console.export_text()
    assert "Parity is broken" in text
    assert "config.size is 1 in the model, 2 in the reference" in text
