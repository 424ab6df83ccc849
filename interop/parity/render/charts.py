"""Errors as curves: along the model, and by position."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from jaxllm.interop.parity.report.report import Bucket, Report
from jaxllm.interop.parity.report.rows import LossResult, TapResult

from .summary import number
from .svg import WIDTH, LogAxis, drawing, element, text, titled

LEFT, RIGHT, TOP = 52, WIDTH - 12, 14


def profile_chart(report: Report) -> str:
    """Error, threshold and noise of every tap in execution order."""
    taps, bottom = report.taps, 220
    errors = [tap.cumulative for tap in taps]
    own = [(tap.forced or tap.cumulative).relative_l2 for tap in taps]
    values = [*own, *(v for e in errors for v in (e.relative_l2, e.floor, e.threshold))]
    axis = LogAxis.around(values, bottom, TOP)
    step = (RIGHT - LEFT) / max(len(taps) - 1, 1)
    xs = [LEFT + at * step for at in range(len(taps))]

    def line(css: str, values: Sequence[float]) -> str:
        points = " ".join(f"{x:.1f},{axis.y(v):.1f}" for x, v in zip(xs, values, strict=True))
        return element("polyline", css=css, points=points)

    elements = [
        *axis.ticks(LEFT, RIGHT),
        *_places(taps, xs, bottom),
        line("noise", [error.floor for error in errors]),
        line("threshold", [error.threshold for error in errors]),
        line("own", own),
        line("error", [error.relative_l2 for error in errors]),
        *(_point(tap, x, axis, step) for tap, x in zip(taps, xs, strict=True)),
        *_key(bottom + 42),
    ]
    return drawing(bottom + 50, elements, "relative L2 error along the model")


def _point(tap: TapResult, x: float, axis: LogAxis, room: float) -> str:
    css = "point" if tap.cumulative.ok else "point bad"
    error = tap.cumulative
    numbers = f"{number(error.relative_l2)} of {number(error.threshold)}"
    radius, y = min(max(room / 2, 1.4), 2.8), axis.y(error.relative_l2)
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
    names = {"error": "error", "own": "own error", "threshold": "threshold", "noise": "noise"}
    for x, (css, name) in zip(itertools.count(LEFT, 120), names.items(), strict=False):
        yield element("polyline", css=css, points=f"{x},{y - 4} {x + 26},{y - 4}")
        yield text(x + 34, y, name, css="tick")


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
    logits = report.logits if title == "relative L2" else None
    limit = [] if logits is None else [logits.threshold]
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


def curve_chart(rows: Sequence[LossResult]) -> str:
    """The losses of training, and how far those of the two sides are apart."""
    bottom, top, middle = 178, 34, WIDTH / 2
    losses = [loss for row in rows for loss in (row.ours, row.theirs) if math.isfinite(loss)]
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    span = high - low or 1.0
    left = [LEFT + i * (middle - 24 - LEFT) / max(len(rows) - 1, 1) for i in range(len(rows))]
    right = [x + middle for x in left]
    axis = LogAxis.around(
        [v for r in rows for v in (r.measured, r.floor, r.threshold)], bottom, top
    )

    def loss_y(loss: float) -> float:
        return bottom - (loss - low) / span * (bottom - top) if math.isfinite(loss) else top

    def line(css: str, xs: Sequence[float], ys: Sequence[float]) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        return element("polyline", css=css, points=points)

    elements = [
        text(LEFT, 14, "loss, nats per token", css="label"),
        *(
            text(LEFT - 8, loss_y(v) + 4, f"{v:.2f}", css="tick", text_anchor="end")
            for v in (low, high)
        ),
        line("noise", left, [loss_y(row.theirs) for row in rows]),
        line("error", left, [loss_y(row.ours) for row in rows]),
        text(right[0], 14, "relative difference", css="label"),
        *axis.ticks(right[0], RIGHT),
        line("noise", right, [axis.y(row.floor) for row in rows]),
        line("threshold", right, [axis.y(row.threshold) for row in rows]),
        line("error", right, [axis.y(row.measured) for row in rows]),
    ]
    for row, x, other in zip(rows, left, right, strict=True):
        css = "point" if row.ok else "point bad"
        title = f"{row.path}: {row.ours:.6f}, the reference {row.theirs:.6f}"
        elements.append(titled(element("circle", css=css, cx=x, cy=loss_y(row.ours), r=2.8), title))
        y = axis.y(row.measured)
        title = f"{row.path}: {number(row.measured)} of {number(row.threshold)}"
        elements.append(titled(element("circle", css=css, cx=other, cy=y, r=2.8), title))
    elements += (
        text(xs[at], bottom + 18, str(at), css="tick", text_anchor="middle")
        for xs in (left, right)
        for at in sorted({0, len(rows) // 2, len(rows) - 1})
    )
    return drawing(210, elements, "loss of training on both sides, and its difference")
