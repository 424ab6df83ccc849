"""Pictures of a run: its losses, and its learning rate."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.errors import UserError

from .metrics import Record, read_metrics
from .optimizers.adamw import OptimizerConfig, make_schedule

INK, PALE, BLUE, ACCENT = "#222222", "#d9d9d9", "#6b8fb5", "#c2410c"


def plot_losses(metrics_jsonl: str | Path, png_path: str | Path, unit: str) -> None:
    """Draws `loss` and `held_out_loss`, in their unit, over the steps: a PNG of 1200 x 700.

    Raises UserError if the file has no loss.
    """
    records = read_metrics(metrics_jsonl)
    training, held_out = _curve(records, "loss"), _curve(records, "held_out_loss")
    if not training[0]:
        raise UserError(f"{metrics_jsonl} has no line with a loss")
    figure, axes = _blank(_title(training, held_out, unit), unit)
    axes.plot(*training, color=BLUE, linewidth=1, label="training")
    if held_out[0]:
        axes.plot(*held_out, "o-", color=ACCENT, markersize=7, linewidth=1.2, label="held out")
    beside_title = axes.legend(loc="lower right", bbox_to_anchor=(1, 1.012), ncols=2, fontsize=14)
    beside_title.set(frame_on=False)
    figure.savefig(png_path)


def plot_schedule(config: OptimizerConfig, steps: int, png_path: str | Path) -> None:
    """Draws the learning rate of every step: a PNG of 1200 x 700."""
    numbers = np.arange(steps + 1)
    rates = np.asarray(jax.jit(jax.vmap(make_schedule(config, steps)))(numbers))
    title = f"Learning rate: {rates.max():.3g} at most, {rates[-1]:.3g} at step {steps:,}"
    figure, axes = _blank(title, "learning rate")
    axes.plot(numbers, rates, color=ACCENT, linewidth=2)
    axes.set_ylim(bottom=0)
    figure.savefig(png_path)


def _blank(title: str, quantity: str) -> tuple[Any, Any]:
    """A figure, and its axes, for a quantity over the steps."""
    # Not pyplot: a figure of its own needs no display and leaves no global state behind.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.3, h_pad=0.3)
    figure = Figure(figsize=(12, 7), dpi=100, facecolor="white", layout=layout)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=18, color=INK, loc="left", pad=20)
    axes.set_xlabel("step", fontsize=15, color=INK, labelpad=10)
    axes.set_ylabel(quantity, fontsize=15, color=INK, labelpad=12)
    axes.tick_params(labelsize=13, colors=INK, length=0, pad=8)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.margins(x=0.01)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure, axes


def _curve(records: list[Record], name: str) -> tuple[list[float], list[float]]:
    there = [record for record in records if name in record]
    return [record["step"] for record in there], [record[name] for record in there]


def _title(training: tuple[list[float], ...], held_out: tuple[list[float], ...], unit: str) -> str:
    name, (steps, losses) = ("Held-out", held_out) if held_out[0] else ("Training", training)
    return f"{name} loss {losses[-1]:.3f} {unit} after {steps[-1]:,.0f} steps"
