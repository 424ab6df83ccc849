"""Errors as curves: along the model, and by position."""

import math
from collections.abc import Callable, Iterator, Sequence

from .outline import number
from .report import Bucket, Report, TapResult
from .svg import WIDTH, LogAxis, drawing, element, text, titled

LEFT, RIGHT, TOP = 52, WIDTH - 12, 14


def profile_chart(report: Report) -> str:
    """Error, threshold and noise of every tap in execution order."""
    taps, bottom = report.taps, 220
    values = [v for tap in taps for v in (tap.relative_l2, tap.floor, tap.threshold)]
    axis = LogAxis.around(values, bottom, TOP)
    step = (RIGHT - LEFT) / max(len(taps) - 1, 1)
    xs = [LEFT + at * step for at in range(len(taps))]

    def line(css: str, values: Sequence[float]) -> str:
        points = " ".join(f"{x:.1f},{axis.y(v):.1f}" for x, v in zip(xs, values, strict=True))
        return element("polyline", css=css, points=points)

    elements = [
        *axis.ticks(LEFT, RIGHT),
        *_places(taps, xs, bottom),
        line("noise", [tap.floor for tap in taps]),
        line("threshold", [tap.threshold for tap in taps]),
        line("error", [tap.relative_l2 for tap in taps]),
        *(_point(tap, x, axis, step) for tap, x in zip(taps, xs, strict=True)),
        *_key(bottom + 42),
    ]
    return drawing(bottom + 50, elements, "relative L2 error along the model")


def _point(tap: TapResult, x: float, axis: LogAxis, room: float) -> str:
    css = "point" if tap.ok else "point bad"
    numbers = f"{number(tap.relative_l2)} of {number(tap.threshold)}"
    radius, y = min(max(room / 2, 1.4), 2.8), axis.y(tap.relative_l2)
    return titled(element("circle", css=css, cx=x, cy=y, r=radius), f"{tap.path}: {numbers}")


def _places(taps: Sequence[TapResult], xs: Sequence[float], bottom: float) -> Iterator[str]:
    """The names of whole layers and of what lies outside of them, as far as there is room."""
    free_from = 0.0
    for tap, x in zip(taps, xs, strict=True):
        stem, _, last = tap.path.rpartition(".")
        if stem and not last.isdecimal():
            continue
        yield element("line", css="grid", x1=x, x2=x, y1=TOP, y2=bottom)
        half = 3.2 * len(tap.path)
        middle = min(max(x, LEFT + half), RIGHT - half)
        if middle - half >= free_from:
            yield text(middle, bottom + 18, tap.path, css="tick", text_anchor="middle")
            free_from = middle + half + 8


def _key(y: float) -> Iterator[str]:
    for x, css in ((LEFT, "error"), (LEFT + 90, "threshold"), (LEFT + 210, "noise")):
        yield element("polyline", css=css, points=f"{x},{y - 4} {x + 26},{y - 4}")
        yield text(x + 34, y, css, css="tick")


def position_chart(report: Report) -> str:
    """Error and divergence by bucket of positions, side by side."""
    middle = WIDTH / 2
    panels = (
        *_panel(report, "relative L2", lambda bucket: bucket.relative_l2, LEFT, middle - 24),
        *_panel(report, "largest KL per token, nats", lambda b: b.kl_max, middle + 52, RIGHT),
    )
    return drawing(210, panels, "error of the logits by position")


def _panel(
    report: Report, title: str, value: Callable[[Bucket], float], left: float, right: float
) -> Iterator[str]:
    bottom, top = 178, 34
    limit = [report.logits.threshold] if title == "relative L2" else []
    values = [value(bucket) for bucket in report.buckets]
    axis = LogAxis.around([*values, *limit], bottom, top)
    yield text(left, 14, title, css="label")
    yield from axis.ticks(left, right)
    for at in limit:
        y = axis.y(at)
        yield element("polyline", css="threshold", points=f"{left:g},{y:.1f} {right:g},{y:.1f}")
    width = (right - left) / len(values)
    for i, (bucket, error) in enumerate(zip(report.buckets, values, strict=True)):
        x, y = left + (i + 0.5) * width, axis.y(error)
        css = "stem" if not limit else "stem ok" if error <= limit[0] else "stem bad"
        stem = element("line", css=css, x1=x, x2=x, y1=bottom, y2=y)
        stem += element("circle", css=css, cx=x, cy=y, r=5)
        shown = number(error) if math.isfinite(error) else str(error)
        yield titled(stem, f"positions {bucket.label}: {shown}")
        yield text(x, bottom + 18, bucket.label, css="tick", text_anchor="middle")
