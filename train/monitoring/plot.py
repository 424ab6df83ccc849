"""Charts of a run: loss curves and the learning-rate schedule."""

from pathlib import Path

import jax
import numpy as np

from jaxllm.charts import BLUE, RED, new_chart, save_chart, set_title
from jaxllm.errors import UserError
from jaxllm.train.optimizers.schedule import ScheduleConfig, make_schedule

from .metrics import Record, read_metrics

HEIGHT = 7 / 1.2  # inches, for files of 1200 x 700 pixels
MARGIN = 0.25


def plot_losses(metrics_jsonl: str | Path, path: str | Path, unit: str) -> None:
    """Plots `loss` and `held_out_loss` over the steps, as a PNG of 1200 x 700 pixels.

    Args:
        metrics_jsonl: the metrics that a run logged.
        path: the file to write.
        unit: the unit of the losses, such as "nats per token".

    Raises:
        UserError: the file has no loss.
    """
    records = read_metrics(metrics_jsonl)
    training, held_out = _curve(records, "loss"), _curve(records, "held_out_loss")
    if not training[0]:
        raise UserError(f"{metrics_jsonl} has no record with a loss, so there is nothing to plot")
    figure, [axes] = new_chart(HEIGHT, margin=MARGIN)
    axes.plot(*training, color=BLUE, linewidth=1, label="training")
    if held_out[0]:
        axes.plot(*held_out, "o-", color=RED, markersize=5, linewidth=1.2, label="held out")
    set_title(axes, _title(training, held_out, unit))
    axes.set(xlabel="step", ylabel=unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    save_chart(figure, path)


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


def _curve(records: list[Record], name: str) -> tuple[list[float], list[float]]:
    """Returns the steps at which a metric was logged, and its values."""
    found = [record for record in records if name in record]
    return [record["step"] for record in found], [record[name] for record in found]


def _title(training: tuple[list[float], ...], held_out: tuple[list[float], ...], unit: str) -> str:
    """A title with the last held-out loss, or the last training loss if nothing was held out."""
    name, (steps, losses) = ("Held-out", held_out) if held_out[0] else ("Training", training)
    return f"{name} loss {losses[-1]:.3f} {unit} after {steps[-1]:,.0f} steps"
