"""Charts of runs: loss curves with the learning rate, several runs together, and schedules."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxllm.charts import BLUE, GREEN, RED, SERIES, new_chart, save_chart, set_title
from jaxllm.errors import UserError
from jaxllm.train.optimizers.schedule import make_schedule
from jaxllm.train.optimizers.schedule_config import ScheduleConfig

from .curves import Curve, curve, smoothed
from .metrics import Record, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 7 / 1.2  # inches, for files of 1200 x 700 pixels
MARGIN = 0.25
RAW = 0.3  # opacity of what a smoothed line is drawn over
FEW_VALUES = 40  # of a curve, each of which gets a dot
# Metrics of which runs are compared, in this order.
TITLES = {
    "loss": "Training loss",
    "held_out_loss": "Held-out loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "speed/tokens_per_s": "Tokens per second",
    "speed/mfu": "Model FLOPs utilization",
    "speed/step_s": "Seconds per step",
    "memory/peak_gib": "Peak device memory in GiB",
}
SMOOTHED = ("loss", "grad_norm")


def plot_losses(metrics_jsonl: str | Path, path: str | Path, unit: str, name: str = "") -> None:
    """Plots the losses and the learning rate over the steps, as a PNG of 1200 x 700 pixels.

    The training loss is drawn raw and, over it, smoothed. The file is replaced when it is whole.

    Args:
        metrics_jsonl: the metrics that a run logged.
        path: the file to write.
        unit: the unit of the losses, such as "nats per token".
        name: the name of the run, for the title.

    Raises:
        UserError: the file has no loss.
    """
    records = read_metrics(metrics_jsonl)
    training, held_out = curve(records, "loss"), curve(records, "held_out_loss")
    if not training.steps.size:
        raise UserError(f"{metrics_jsonl} has no record with a loss, so there is nothing to plot")
    figure, [axes, below] = new_chart(HEIGHT, margin=MARGIN, row_heights=(4, 1))
    axes.plot(*training, color=BLUE, linewidth=0.8, alpha=RAW, label="training")
    axes.plot(*smoothed(training), color=BLUE, linewidth=1.8, label="training, smoothed")
    if held_out.steps.size:
        axes.plot(*held_out, "o-", color=RED, markersize=4.5, linewidth=1.4, label="held out")
    set_title(axes, _title(name, training, held_out, unit))
    _limit(axes, [training, held_out])
    axes.set_ylabel(unit)
    axes.tick_params(labelbottom=False)
    below.plot(*curve(records, "learning_rate"), color=GREEN, linewidth=1.4)
    below.set(xlabel="step", ylabel="learning rate", xlim=axes.get_xlim())
    below.set_ylim(bottom=0)
    below.xaxis.set_major_formatter("{x:,.0f}")
    below.locator_params(axis="y", nbins=3)
    below.yaxis.set_major_formatter("{x:.3g}")
    save_chart(figure, path)


def compare_curves(runs: Mapping[str, list[Record]], metric: str = "loss") -> "Figure":
    """Returns a chart of one metric of several runs, a color each.

    What is noisy is drawn smoothed over the raw line, what is rare with a dot for each value.

    Args:
        runs: the records of each run by its name; each has the metric.
        metric: one of `TITLES`.
    """
    figure, [axes] = new_chart(HEIGHT, margin=MARGIN)
    curves = {name: curve(records, metric) for name, records in runs.items()}
    for index, (name, raw) in enumerate(curves.items()):
        color = SERIES[index % len(SERIES)]
        if metric in SMOOTHED:
            axes.plot(*raw, color=color, linewidth=0.7, alpha=RAW)
        line = smoothed(raw) if metric in SMOOTHED else raw
        style = "o-" if raw.steps.size <= FEW_VALUES and metric not in SMOOTHED else "-"
        axes.plot(*line, style, color=color, linewidth=1.8, markersize=4, label=name)
    _limit(axes, list(curves.values()))
    set_title(axes, TITLES[metric])
    axes.set(xlabel="step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def plot_schedule(config: ScheduleConfig, steps: int, path: str | Path) -> None:
    """Plots the learning rate of every step, in the format of the file name."""
    numbers = np.arange(steps + 1)
    rates = np.asarray(jax.jit(jax.vmap(make_schedule(config, steps)))(numbers))
    figure, [axes] = new_chart(HEIGHT, margin=MARGIN)
    set_title(axes, f"Learning rate: peak {rates.max():.3g}, {rates[-1]:.3g} at step {steps:,}")
    axes.plot(numbers, rates, color=BLUE, linewidth=2)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    save_chart(figure, path)


def _limit(axes: "Axes", curves: list[Curve]) -> None:
    """Keeps a few steps with a huge loss from flattening everything else."""
    values = np.concatenate([each.values for each in curves])
    if values.size < 50:
        return
    low, typical = values.min(), np.quantile(values, 0.99)
    high = typical + 0.5 * (typical - low)
    if values[values.size // 10 :].max() > high or values.max() > 3 * high:
        axes.set_ylim(low - 0.05 * (high - low), high)


def _title(name: str, training: Curve, held_out: Curve, unit: str) -> str:
    """A title with the last held-out loss, or the last training loss if nothing was held out."""
    what, last = ("held-out", held_out) if held_out.steps.size else ("training", training)
    loss = f"{what} loss {last.values[-1]:.3f} {unit} after {last.steps[-1]:,.0f} steps"
    return f"{name}: {loss}" if name else f"{loss[0].upper()}{loss[1:]}"
