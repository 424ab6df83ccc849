"""Charts of a report's errors."""

import dataclasses

import pytest
from parity_reports import NAN, REPORTS, make_report, with_rows

from jaxllm.charts import CSS_VARIABLES, RED
from jaxllm.interop.parity.render import charts
from jaxllm.interop.parity.render.charts import curve_chart, position_chart, profile_chart
from jaxllm.interop.parity.render.summary_tables import layers_table
from jaxllm.interop.parity.report.rows import LossResult

RED_POINT = f"fill: var({CSS_VARIABLES[RED]}, {RED})"


def points(svg, color=""):
    """Counts the markers of a color."""
    return sum("<use" in line and color in line for line in svg.splitlines())


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_every_activation_is_a_point_and_failing_ones_are_red(report):
    svg = profile_chart(report)
    assert points(svg) == len(report.taps)
    assert points(svg, RED_POINT) == sum(not tap.cumulative.ok for tap in report.taps)
    for text in ("embed", "layers.1", "noise floor", "threshold", "own error"):
        assert f">{text}</text>" in svg


def test_own_errors_are_drawn_only_where_they_were_measured():
    report = make_report()
    taps = tuple(dataclasses.replace(tap, forced=None) for tap in report.rows["layers"])
    without = with_rows(report, layers=taps, logits=())
    assert "own error" not in profile_chart(without)
    assert "own error" not in layers_table(without).columns
    assert "own error" in layers_table(report).columns


def test_the_tick_of_a_layer_stands_at_its_first_activation():
    """The taps are embed, then five of each layer, of which its own output is the last."""
    places = {}

    class Axes:
        def set_xticks(self, at, labels):
            places.update(zip(labels, at, strict=True))

        def grid(self, **_):
            pass

    charts._name_layers(Axes(), make_report().taps)
    assert places["embed"] == 0
    assert places["layers.0"] == 1
    assert places["layers.1"] == 6


@pytest.mark.parametrize(("error", "num_red"), [(4e-7, 0), (0.27, 2), (NAN, 2)])
def test_failing_position_ranges_are_red(error, num_red):
    svg = position_chart(make_report(error))
    assert points(svg) == 4
    assert points(svg, RED_POINT) == num_red
    assert svg.count(">4-31</text>") == 2


def test_losses_of_both_sides_are_drawn_even_with_nan():
    losses = [(4.0, 4.0), (3.5, 3.0), (NAN, 2.5)]
    curve = tuple(LossResult(f"step {i}", *x, x[1], 1e-7, 1e-6) for i, x in enumerate(losses))
    svg = curve_chart(curve)
    assert points(svg) == 6
    assert points(svg, RED_POINT) == 4
    for text in ("reference", "model", "relative error", "loss, nats per token"):
        assert f">{text}</text>" in svg


def test_the_losses_of_a_regression_have_their_own_unit():
    row = LossResult("step 0", 0.5, 0.5, 0.5, 1e-7, 1e-6, unit="mean squared error")
    svg = curve_chart([row])
    assert ">loss, mean squared error</text>" in svg
    assert "nats" not in svg
