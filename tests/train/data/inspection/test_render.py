"""Summaries as tables and as a page, in which texts of data stay texts."""

import io

from rich.console import Console

from jaxllm.train.data.inspection.render import render_page, render_terminal
from jaxllm.train.data.inspection.summary import DataSummary, Piece, ShownRow, SourceSummary

LENGTHS = {"shortest": 1, "median": 7, "90 %": 30, "longest": 1234}
SUMMARY = DataSummary(
    seq_len=2048,
    sampled=1024,
    held_out_rows=99,
    sources=(SourceSummary("web", 1000, 54321, 0.75, 0.991, 0.5, 3.25, LENGTHS),),
    shown=(
        ShownRow(
            *("web", 12, 5, 3),
            ((Piece("[bold]<b>asked\x1b[31m", False), Piece("answered", True)),),
        ),
    ),
)
FIGURES = ("54,321", "75.0%", "99.1%", "50.0%", "3.25", "1/7/30/1,234")


def test_a_terminal_shows_what_is_not_learned_dimmed():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
    for part in render_terminal(SUMMARY):
        console.print(part)
    text = console.file.getvalue()
    assert all(figure in text for figure in FIGURES)
    assert "row 1  web  documents 1  tokens 12  targets 5  padding 3" in text
    assert "\x1b[2m[bold]<b>asked\\x1b[31m\x1b[0manswered" in text


def test_a_page_needs_no_other_file_and_runs_nothing():
    page = render_page(SUMMARY, "<run>.yaml")
    assert all(figure in page for figure in FIGURES)
    assert "&lt;run&gt;.yaml" in page
    assert '<span class="off">[bold]&lt;b&gt;asked\\x1b[31m</span><span>answered</span>' in page
    assert "http" not in page
