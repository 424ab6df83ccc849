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


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_nothing_is_cut_off_in_80_columns(report):
    text = text_of(report)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_failing_level_names_its_first_failure():
    lines = text_of(make_report(0.27)).splitlines()
    [row] = [line for line in lines if "✗ logits" in line and "64 tokens" in line]
    assert "lm_head" in row
    assert "0.14" in row
