"""Line charts in one shared style, drawn by matplotlib: SVG for web pages, or PNG files.

matplotlib is imported only when a chart is drawn, so that commands start quickly.
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.errors import on_one_line
from jaxllm.storage.whole_file import write_whole
from jaxllm.untrusted.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0  # inches, of every chart
PNG_DPI = 120

INK, SOFT, LINE = "#221c26", "#6d6673", "#e4e0e6"
BLUE, GRAY, GREEN, RED = "#4f78b5", "#a79fae", "#2c7a4b", "#b3261e"
# Colors of runs that are compared: told apart also by those who see red and green alike
# (Okabe and Ito, 2008).
SERIES = ("#4f78b5", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4a8a", "#8c8c8c")
# A page can recolor the charts, for dark mode say, by defining these CSS variables.
CSS_VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    BLUE: "--blue",
    GRAY: "--gray",
    GREEN: "--ok",
    RED: "--bad",
}
_COLOR = re.compile("|".join(CSS_VARIABLES))


def new_chart(
    height: float, columns: int = 1, margin: float = 0.04, row_heights: Sequence[float] = (1,)
) -> tuple["Figure", Sequence["Axes"]]:
    """Returns an empty figure and its axes from left to right, and then from top to bottom.

    Args:
      height: height of the figure, in inches.
      columns: number of axes, side by side.
      margin: space around each of the axes and its labels, in inches.
      row_heights: relative heights of the rows of axes, below each other.
    """
    # Not pyplot: a bare figure needs no display and leaves no global state behind.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=margin, h_pad=margin)
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    rows = figure.subplots(
        len(row_heights), columns, squeeze=False, gridspec_kw={"height_ratios": row_heights}
    )
    every = [axes for row in rows for axes in row]
    for axes in every:
        _apply_style(axes)
    return figure, every


def set_title(axes: "Axes", title: str) -> None:
    """Writes a title above the axes and, below it, a legend if any line is labeled."""
    handles, labels = axes.get_legend_handles_labels()
    axes.set_title(_literal(title), loc="left", fontsize=12, color=INK, pad=26)
    if handles:
        axes.legend(
            handles,
            list(map(_literal, labels)),
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            borderaxespad=0.4,
            borderpad=0,
            ncols=len(handles),
            frameon=False,
            labelcolor=SOFT,
            fontsize=9,
            handlelength=1.6,
        )


def _literal(text: str) -> str:
    """Returns a name as it can be drawn: `$` begins no formula, and nothing is a control code."""
    return printable(on_one_line(text)).replace("$", r"\$")


def to_svg(figure: "Figure") -> str:
    """Returns the figure as an `<svg>` element for HTML.

    The output is deterministic. Colors are CSS variables that fall back to this module's colors.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # "none" keeps text as text, which can be searched, selected and restyled.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxllm"}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    # HTML needs neither the XML header nor namespaces. The ids of groups would clash with those of
    # other figures on the page, and nothing refers to them.
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return _COLOR.sub(lambda color: f"var({CSS_VARIABLES[color[0]]}, {color[0]})", svg)


def save_chart(figure: "Figure", path: str | Path) -> None:
    """Writes the figure in the format of the file name: .png (1200 pixels wide), .pdf or .svg."""
    file = io.BytesIO()
    with warnings.catch_warnings():  # what a font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format=Path(path).suffix[1:], dpi=PNG_DPI, facecolor="white")
    write_whole(path, file.getvalue())


def _apply_style(axes: "Axes") -> None:
    """Draws horizontal grid lines behind the data and removes the frame."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=SOFT, length=0, pad=6, labelsize=9)
    axes.tick_params(which="minor", length=0)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    axes.margins(x=0.01)
