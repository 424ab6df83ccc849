"""Layers by steps: where the error lies, and how far beyond its threshold."""

import itertools
import math
from collections.abc import Iterable, Iterator

from jaxllm.interop.parity.report.report import Report
from jaxllm.interop.parity.report.rows import TapResult

from .summary import number, outline
from .svg import WIDTH, drawing, element, text, titled

LEFT, TOP, CELL_HEIGHT, MAX_CELL_WIDTH = 112, 40, 34, 84
OWN_HEIGHT = 8  # of the strip below a cell, for the step's own error
NUMBERS_FIT = 50  # a cell this wide has room for its number

# Error over threshold, as a power of ten, and its colour. The jump is at the threshold.
HELD = ((-2.0, (238, 244, 239)), (0.0, (148, 196, 160)))
BROKEN = ((0.0, (246, 190, 130)), (2.0, (214, 84, 62)), (5.0, (106, 15, 35)))
UNDEFINED = (34, 28, 38)


def heat_map(report: Report) -> str:
    """A column for each layer and a row for each of its steps."""
    parts = outline(report.taps)
    steps = parts.steps or ("output",)
    columns: list[tuple[str, dict[str, TapResult]]] = [
        *((tap.path, {steps[-1]: tap}) for tap in parts.before),
        *((layer.rpartition(".")[2], taps) for layer, taps in parts.layers.items()),
        *((tap.path, {steps[-1]: tap}) for tap in parts.after),
    ]
    width = min((WIDTH - LEFT) / len(columns), MAX_CELL_WIDTH)
    bottom = TOP + len(steps) * CELL_HEIGHT
    elements = [
        text(LEFT - 10, TOP + row * CELL_HEIGHT + 20, step, css="label", text_anchor="end")
        for row, step in enumerate(steps)
    ]
    elements += _stack_names(parts.layers, LEFT + len(parts.before) * width, width)
    stride = math.ceil(26 / width)  # every so manieth layer has room for its number
    for at, (name, taps) in enumerate(columns):
        x = LEFT + at * width
        for row, step in enumerate(steps):
            if step in taps:
                first = taps[step] is report.first_divergence
                elements.append(_cell(taps[step], x, TOP + row * CELL_HEIGHT, width, first))
        elements += _column_name(name, len(taps), x + width / 2, bottom, stride)
    elements += _legend(bottom + 30)
    return drawing(bottom + 62, elements, "error over threshold of every step of every layer")


def _cell(tap: TapResult, x: float, y: float, width: float, first: bool) -> str:
    """The error of a step, and below it the step's own."""
    gap, error, own = min(1.0, width / 12), tap.cumulative, tap.forced
    inset = 4 * gap if first else gap  # a frame, and a light gap that sets it off from any colour
    frame = _box(x, y, width, CELL_HEIGHT, gap, css="first") if first else ""
    height = CELL_HEIGHT if own is None else CELL_HEIGHT - OWN_HEIGHT
    boxes = [frame, _box(x, y, width, height, inset, css="cell", fill=_color(error.ratio))]
    if own is not None:
        top = y + height - inset
        boxes.append(_box(x, top, width, OWN_HEIGHT + inset, inset, fill=_color(own.ratio)))
    if width >= NUMBERS_FIT:
        css = "value light" if _is_dark(error.ratio) else "value"
        at, middle = y + height / 2 + 4, x + width / 2
        boxes.append(text(middle, at, number(error.relative_l2), css=css, text_anchor="middle"))
    return titled("".join(boxes), _details(tap))


def _details(tap: TapResult) -> str:
    """All numbers of a step, line by line."""
    errors = {"with all before it": tap.cumulative, "its own": tap.forced}
    lines = [
        f"relative L2 {what} {number(error.relative_l2)}, noise {number(error.floor)}, threshold "
        f"{number(error.threshold)}, error / threshold {number(error.ratio)}"
        for what, error in errors.items()
        if error is not None
    ]
    ulps = (("median", tap.ulp_p50), ("p99", tap.ulp_p99), ("largest", tap.ulp_max))
    places = ", ".join(f"{what} {number(value)}" for what, value in ulps)
    return "\n".join(
        (tap.path, *lines, f"max |d| / rms {number(tap.max_over_rms)}", f"ulps: {places}")
    )


def _box(x: float, y: float, width: float, height: float, gap: float, **attributes: str) -> str:
    return element(
        "rect",
        x=x + gap,
        y=y + gap,
        width=width - 2 * gap,
        height=height - 2 * gap,
        rx=min(3.0, width / 4),
        **attributes,
    )


def _stack_names(layers: Iterable[str], x: float, width: float) -> Iterator[str]:
    """The name of each stack above its first layer, where there are several."""
    stacks = [layer.rpartition("layers.")[0].rstrip(".") for layer in layers]
    for name in dict.fromkeys(filter(None, stacks)):
        yield text(x + stacks.index(name) * width + 2, TOP - 24, name, css="label")


def _column_name(name: str, cells: int, x: float, bottom: float, stride: int) -> Iterator[str]:
    """A layer's number above its column; another module's name upright over its only cell."""
    if name.isdecimal():
        if int(name) % stride == 0:
            yield text(x, TOP - 8, name, css="tick", text_anchor="middle")
    elif cells == 1:
        y = bottom - CELL_HEIGHT - 8
        turn = f"rotate(-90 {x + 4:.1f} {y:.1f})"
        yield text(x + 4, y, name, css="label", transform=turn)


def _legend(y: float) -> Iterator[str]:
    """The colours and what they mean, from a hundredth of the threshold to 1e5 times."""
    width, half = 34, 17
    for at in range(-4, 10):  # in half powers of ten, to show the jump at the threshold
        fill = _color(1.001 * 10 ** (at / 2))
        yield element("rect", x=LEFT + (at + 4) * half, y=y, width=half, height=10, fill=fill)
    for at, label in enumerate(("0.01", "0.1", "1", "10", "100", "1e3", "1e4", "1e5")):
        x = LEFT + at * width
        yield text(x, y + 24, label, css="tick", text_anchor="middle")
    x = LEFT + 7 * width + 20
    yield text(x, y + 9, "error / threshold", css="tick")
    yield element("rect", css="first", x=x + 120, y=y - 2, width=22, height=14, rx=3)
    yield text(x + 150, y + 9, "first divergence", css="tick")


def _color(ratio: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*_rgb(ratio))


def _rgb(ratio: float) -> tuple[int, ...]:
    if math.isnan(ratio):
        return UNDEFINED
    stops = HELD if ratio <= 1 else BROKEN
    exponent = math.log10(ratio) if ratio > 0 else -math.inf
    exponent = min(max(exponent, stops[0][0]), stops[-1][0])
    for (low, start), (high, end) in itertools.pairwise(stops):
        if exponent <= high:
            share = (exponent - low) / (high - low)
            return tuple(round(a + share * (b - a)) for a, b in zip(start, end, strict=True))
    return stops[-1][1]


def _is_dark(ratio: float) -> bool:
    return sum(_rgb(ratio)) < 380
