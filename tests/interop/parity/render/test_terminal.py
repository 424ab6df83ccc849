"""The report on a terminal."""

import io

import pytest
from parity_reports import REPORTS, make_report
from rich.console import Console

from jaxllm.interop.parity.render.terminal import render


def text_of(report, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_verdict_and_the_tables_are_shown(report):
    text = text_of(report)
    assert ("Parity holds" in text) == report.ok
    assert "layers.1" in text
    assert "4-31" in text
    if not report.ok:
        assert "layers.0.mlp" in text


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_nothing_is_cut_off_in_narrow_terminals(report, width):
    text = text_of(report, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "layers.1.att" in text  # names of steps fold, but stay readable
    if not report.ok:
        assert any(line.split()[:1] == ["layers.0.mlp"] for line in text.splitlines())


def test_a_failing_level_names_its_first_failure():
    lines = text_of(make_report(0.27)).splitlines()
    [row] = [line for line in lines if "✗ logits" in line and "64 tokens" in line]
    assert "lm_head" in row
    assert "0.14" in row
