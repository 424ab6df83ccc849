"""Plots of a run: loss curves and learning-rate schedules."""

import json
import struct

import pytest

from jaxllm.train.monitoring.plot import compare_curves, plot_losses, plot_schedule
from jaxllm.train.optimizers.config import OptimizerConfig


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def size_of(png):
    header = png.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return struct.unpack(">II", header[16:])


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 1, "loss": 2.0}],
        [{"step": s, "loss": 5 / s, "norm": 1.0} for s in range(1, 9)]
        + [{"step": 8, "held_out_loss": 1}],
    ],
)
def test_the_loss_plot_is_a_png_of_the_stated_size(tmp_path, records):
    png = tmp_path / "loss.png"
    plot_losses(write(tmp_path / "metrics.jsonl", *records), png, "nats", "my run")
    assert size_of(png) == (1200, 700)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl", "loss.png"]


def test_the_schedule_plot_is_a_png_of_the_stated_size(tmp_path):
    png = tmp_path / "schedule.png"
    plot_schedule(OptimizerConfig(warmup_steps=10, decay="multi_step"), 100, png)
    assert size_of(png) == (1200, 700)


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_of_the_plot_is_its_format(tmp_path, suffix, start):
    plot_schedule(OptimizerConfig(), 10, tmp_path / f"schedule.{suffix}")
    assert (tmp_path / f"schedule.{suffix}").read_bytes().startswith(start)


def test_a_file_without_losses_is_reported(tmp_path):
    path = write(tmp_path / "metrics.jsonl", {"step": 1, "norm": 2.0})
    with pytest.raises(ValueError, match=r"metrics\.jsonl has no record with a loss"):
        plot_losses(path, tmp_path / "loss.png", "nats")


def test_a_comparison_draws_the_raw_line_behind_the_smoothed_one():
    rows = [{"step": s, "loss": 5 / s, "learning_rate": 1e-3} for s in range(1, 60)]
    figure = compare_curves({"a": rows, "b": rows[:30]})
    [axes] = figure.axes
    assert len(axes.lines) == 4
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    [axes] = compare_curves({"a": rows}, "learning_rate").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1e-3] * 59]


def test_a_few_huge_losses_do_not_flatten_the_curve():
    rows = [{"step": s, "loss": 1e9 if s == 150 else 3.0 + 1 / s} for s in range(1, 200)]
    [axes] = compare_curves({"a": rows}).axes
    assert axes.get_ylim()[1] < 10
