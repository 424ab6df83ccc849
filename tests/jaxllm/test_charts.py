"""Charts render to deterministic, restylable SVG and to PNG."""

import re
import struct
import subprocess
import sys

from jaxllm.charts import BLUE, CSS_VARIABLES, new_chart, save_chart, set_title, to_svg


def draw():
    figure, [axes] = new_chart(3)
    axes.plot([1, 2, 3], "o-", color=BLUE, label="a line")
    set_title(axes, "values < 4")
    return figure


def test_svg_is_deterministic():
    assert to_svg(draw()) == to_svg(draw())


def test_svg_is_an_html_element_with_searchable_text():
    svg = to_svg(draw())
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert not re.search(r"https?:|xmlns|<metadata", svg)
    assert ">values &lt; 4</text>" in svg
    assert ">a line</text>" in svg


def test_names_are_drawn_as_they_are(recwarn, tmp_path):
    figure, [axes] = new_chart(3)
    axes.plot([1, 2], label="run $\\x$\x1b\n\udcff")
    set_title(axes, "run $x^$\x07")
    svg = to_svg(figure)
    assert r">run $\x$\x1b\n\udcff</text>" in svg
    assert r">run $x^$\x07</text>" in svg
    set_title(axes, "日本語")
    save_chart(figure, tmp_path / "chart.png")
    assert not recwarn


def test_every_color_is_a_css_variable():
    svg = to_svg(draw())
    assert f"stroke: var({CSS_VARIABLES[BLUE]}, {BLUE})" in svg
    colors = set(re.findall(r"(.{6})(#[0-9a-f]{6})", svg))
    assert {color for _, color in colors} <= CSS_VARIABLES.keys()
    assert not re.search(r"(fill|stroke): #", svg)


def test_all_charts_have_the_same_width(tmp_path):
    figure, axes = new_chart(7 / 1.2, columns=3)
    assert len(axes) == 3
    save_chart(figure, tmp_path / "chart.png")
    header = (tmp_path / "chart.png").read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert struct.unpack(">II", header[16:]) == (1200, 700)


def test_matplotlib_is_imported_lazily_and_without_pyplot():
    script = """
import sys
import jaxllm.charts
import jaxllm.interop.parity.render.html
assert not {"matplotlib", "jinja2"} & set(sys.modules)
figure, [axes] = jaxllm.charts.new_chart(3)
jaxllm.charts.to_svg(figure)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
