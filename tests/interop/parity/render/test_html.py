"""The HTML page of a report."""

import dataclasses
import importlib.resources
import re
from html.parser import HTMLParser

import pytest
from parity_reports import REPORTS, tap, with_rows

from jaxllm.charts import CSS_VARIABLES
from jaxllm.interop.parity.render.html import render
from jaxllm.interop.parity.report.rows import FieldResult, LossResult, TextResult

VOID = {"meta", "col"}
# Anything that a browser would fetch or run; a reference within the page starts with `#`.
OUTSIDE = r"https?:|<script|<link|<iframe|<img|@import|url\((?!#)|\b(?:src|href)=\"(?!#)|\bon\w+="


class Balance(HTMLParser):
    """Checks that every element is closed where it must be."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_page_is_self_contained(report, tmp_path):
    report.write_html(tmp_path / "parity.html")
    page = (tmp_path / "parity.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert not re.search(OUTSIDE, page)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_page_has_the_verdict_and_every_activation(report):
    page = render(report)
    assert ("Parity holds" in page) == report.ok
    assert ("Parity is broken" in page) != report.ok
    assert all(tap.path in page for tap in report.taps)
    assert "0.10.2" in page
    assert ("<code>layers.0.mlp</code>" in page) != report.ok


def test_text_is_escaped():
    report = REPORTS["broken"]
    taps = (dataclasses.replace(tap("<i>embed", 1.0), hint="<i>hint"), *report.rows["layers"])
    page = render(dataclasses.replace(with_rows(report, layers=taps), subject="tiny <i>llama"))
    assert "<i>" not in page
    for text in ("&lt;i&gt;embed", "&lt;i&gt;hint", "tiny &lt;i&gt;llama"):
        assert text in page


def test_the_same_report_gives_the_same_page():
    assert render(REPORTS["broken"]) == render(REPORTS["broken"])


def test_compared_levels_have_sections():
    report = REPORTS["honest"]
    titles = ("Config", "Training", "Generation")
    page = render(report)
    assert not any(f"<h2>{title}</h2>" in page for title in titles)
    verdicts = {"config": False, "curve": True, "generate": True}
    more = with_rows(
        dataclasses.replace(report, verdicts=verdicts),
        config=(FieldResult("config.norm_eps", "1e-05", "1e-06"),),
        curve=(LossResult("step 0", 4.25, 4.25, 4.25, 1e-7, 1e-6),),
        generate=(TextResult("generate.greedy", 5, (1, 2), (1, 2)),),
    )
    page = render(more)
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    assert "Every activation of every layer" not in page
    for text in ("config.norm_eps", "4.250000", "2 of 2 tokens equal"):
        assert text in page


def test_template_and_style_sheet_are_files_of_the_package():
    folder = importlib.resources.files("jaxllm.interop.parity.render")
    assert all((folder / name).is_file() for name in ("report.html.jinja", "report.css"))


def test_every_color_of_a_chart_has_a_light_and_a_dark_value():
    folder = importlib.resources.files("jaxllm.interop.parity.render")
    light, dark = (folder / "report.css").read_text().split("prefers-color-scheme: dark", 1)
    for variable in CSS_VARIABLES.values():
        assert f"{variable}:" in light
        assert f"{variable}:" in dark
