"""Charts of errors: by activation, by position and by training step."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jaxllm.charts import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    LINE,
    RED,
    SOFT,
    new_chart,
    set_title,
    to_svg,
)
from jaxllm.interop.parity.report.activation_rows import TapResult
from jaxllm.interop.parity.report.report import ReportData
from jaxllm.interop.parity.report.rows import LossResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 2.6  # inches
LABEL_ROOM = 104  # characters that fit below the axes of a whole chart


def profile_chart(report: ReportData) -> str:
    """Draws distances from float64 for every activation in execution order.

    They are those of the model, of the reference, of its simulated rounding, and the threshold.
    """
    taps = report.taps
    errors = [tap.cumulative for tap in taps]
    measured = [error.measured for error in errors]
    own = [math.nan if tap.forced is None else tap.forced.measured for tap in taps]
    is_own_measured = any(tap.forced is not None for tap in taps)
    reference = [error.reference for error in errors]
    floors, thresholds = [e.floor for e in errors], [e.threshold for e in errors]
    figure, [axes] = new_chart(HEIGHT)
    bottom, top = _set_log_scale(axes, [*measured, *own, *reference, *floors, *thresholds])
    axes.plot(_clamp(floors, bottom, top), color=GRAY, linewidth=1.2, label="noise floor")
    axes.plot(_clamp(reference, bottom, top), color=GREEN, linewidth=1.2, label="reference")
    axes.plot(_clamp(thresholds, bottom, top), "--", color=RED, linewidth=1.2, label="threshold")
    if is_own_measured:
        axes.plot(_clamp(own, bottom, top), color=BLUE, linewidth=1.2, label="own error")
    axes.plot(_clamp(measured, bottom, top), color=INK, linewidth=1.2, label="error")
    _mark(axes, range(len(taps)), _clamp(measured, bottom, top), [e.ok for e in errors])
    _name_layers(axes, taps)
    set_title(axes, "distance from float64, relative L2")
    return to_svg(figure)


def position_chart(report: ReportData) -> str:
    """Draws the error and the KL divergence of the logits by range of positions."""
    figure, [left, right] = new_chart(HEIGHT, columns=2)
    errors = [bucket.relative_l2 for bucket in report.buckets]
    labels = [bucket.label for bucket in report.buckets]
    # The threshold is for all positions together: a single range of a correct model may exceed it.
    most = math.inf if report.logits is None or report.logits.ok else report.logits.threshold
    _draw_stems(left, errors, [GREEN if error <= most else RED for error in errors])
    set_title(left, "relative L2 difference from the reference")
    _draw_stems(right, [bucket.kl_max for bucket in report.buckets], [SOFT] * len(labels))
    set_title(right, "largest KL divergence per token, nats")
    for axes in (left, right):
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel("positions")
        axes.margins(x=0.2)
    return to_svg(figure)


def curve_chart(rows: Sequence[LossResult]) -> str:
    """Draws the training losses of both sides, and the error of the model's."""
    steps = range(len(rows))
    figure, [left, right] = new_chart(HEIGHT, columns=2)
    ours, theirs = [row.ours for row in rows], [row.theirs for row in rows]
    finite = [loss for loss in (*ours, *theirs) if math.isfinite(loss)] or [0.0]
    left.plot(theirs, color=GRAY, linewidth=4, label="reference")
    left.plot(_clamp(ours, min(finite), max(finite)), color=INK, linewidth=1.2, label="model")
    _mark(left, steps, _clamp(ours, min(finite), max(finite)), [row.ok for row in rows])
    set_title(left, f"loss, {rows[0].unit}")

    measured, floors = [row.measured for row in rows], [row.floor for row in rows]
    thresholds = [row.threshold for row in rows]
    bottom, top = _set_log_scale(right, [*measured, *floors, *thresholds])
    right.plot(_clamp(floors, bottom, top), color=GRAY, linewidth=1.2, label="noise floor")
    right.plot(thresholds, "--", color=RED, linewidth=1.2, label="threshold")
    right.plot(_clamp(measured, bottom, top), color=INK, linewidth=1.2, label="error")
    _mark(right, steps, _clamp(measured, bottom, top), [row.ok for row in rows])
    set_title(right, "relative error")
    for axes in (left, right):
        axes.set_xticks(sorted({0, len(rows) // 2, len(rows) - 1}))
        axes.set_xlabel("step")
    return to_svg(figure)


def _draw_stems(axes: "Axes", values: Sequence[float], colors: Sequence[str]) -> None:
    bottom, top = _set_log_scale(axes, values)
    drawn = _clamp(values, bottom, top)
    axes.vlines(range(len(drawn)), bottom, drawn, colors=colors, linewidth=2.5)
    axes.scatter(range(len(drawn)), drawn, c=colors, s=50, clip_on=False, zorder=3)


def _mark(axes: "Axes", xs: Sequence[int], ys: Sequence[float], held: Sequence[bool]) -> None:
    """Marks every value with a point: red where it is beyond its threshold."""
    size = 18 if len(xs) <= 120 else 5
    colors = [INK if ok else RED for ok in held]
    axes.scatter(xs, ys, c=colors, s=size, clip_on=False, zorder=3)


def _name_layers(axes: "Axes", taps: Sequence[TapResult]) -> None:
    """Labels layers at their first activation, and modules outside of layers, where there is room.

    A layer's own activation, its output, is its last.
    """
    named: dict[int, str] = {}
    free_from = 0.0
    begins: dict[str, int] = {}
    for x, tap in enumerate(taps):
        parts = tap.path.split(".")
        for depth in range(1, len(parts) + 1):
            begins.setdefault(".".join(parts[:depth]), x)
    for tap in taps:
        parent, _, last = tap.path.rpartition(".")
        if parent and not last.isdecimal():
            continue  # within a layer
        x = begins[tap.path]
        center = x / max(len(taps) - 1, 1) * LABEL_ROOM
        if center - len(tap.path) / 2 >= free_from or not named:
            named[x] = tap.path
            free_from = center + len(tap.path) / 2 + 2
    axes.set_xticks(list(named), list(named.values()))
    axes.grid(axis="x", color=LINE, linewidth=0.8)


def _set_log_scale(axes: "Axes", values: Iterable[float]) -> tuple[float, float]:
    """Sets a log scale between the powers of ten around all positive finite values."""
    exponents = [math.log10(v) for v in values if v > 0 and math.isfinite(v)] or [0.0]
    low = math.floor(min(exponents))
    high = max(math.ceil(max(exponents)), low + 1)
    axes.set_yscale("log")
    axes.set_ylim(10.0**low, 10.0**high)
    ticks = range(low, high + 1, math.ceil((high - low) / 6))
    axes.set_yticks([10.0**exponent for exponent in ticks], [f"1e{e}" if e else "1" for e in ticks])
    axes.minorticks_off()
    return 10.0**low, 10.0**high


def _clamp(values: Iterable[float], bottom: float, top: float) -> list[float]:
    """Clamps values to a scale; NaN and infinity go to its top."""
    return [min(max(v, bottom), top) if math.isfinite(v) else top for v in values]
