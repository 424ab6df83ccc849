"""Logging of a run: metrics file, progress line and loss plot, written by process 0."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import jax
from jax import Array

from jaxllm.errors import NonFiniteError, UserError
from jaxllm.train.config import TrainConfig, save_config

from .metrics import MetricLog, Progress, read_metrics
from .plot import plot_losses


class RunLogger:
    """Writes a run's metrics to its log and progress line, and its loss plot on exit.

    Only process 0 writes. A step's metrics are fetched after the next step has been dispatched, so
    that no device waits.
    """

    def __init__(self, config: TrainConfig, folder: Path, resume_at: int | None, unit: str):
        self._pending: tuple[int, dict[str, Array]] | None = None
        self._stack = ExitStack()
        self._log: MetricLog | None = None
        self._folder, self._unit = folder, unit
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_config(config, folder / "config.yaml")
            self._log = self._stack.enter_context(
                MetricLog(
                    folder,
                    resume_at=resume_at,
                    tensorboard=_wants_tensorboard(config),
                    wandb=config.wandb,
                )
            )
            tokens = config.batch_size * config.seq_len
            progress = Progress(
                config.steps,
                start=resume_at or 0,
                tokens_per_step=tokens,
                log_every=config.log_every,
            )
            self._progress = self._stack.enter_context(progress)

    def add(self, step: int, metrics: dict[str, Array]) -> None:
        """Queues a step's metrics and writes those of the previous step."""
        self.flush()
        self._pending = step, metrics

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Writes the queued metrics; does not count the time inside for the speed."""
        self.flush()
        with nullcontext() if self._log is None else self._progress.paused():
            yield

    def held_out(self, step: int, loss: float | None) -> None:
        """Writes the held-out loss, after the metrics of its step; None is not written."""
        self.flush()
        if self._log is not None and loss is not None:
            self._log.write(step, {"held_out_loss": loss})
            self._progress.held_out(step, loss)

    def flush(self) -> None:
        """Writes the queued metrics. Raises NonFiniteError if one of them is not finite."""
        if self._pending is None:
            return
        step, pending = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in pending.items()}
        if self._log is not None:
            self._log.write(step, metrics)
            self._progress.update(step, metrics["loss"])
        if not all(map(math.isfinite, metrics.values())):
            raise NonFiniteError(f"step {step} has non-finite metrics and is not saved: {metrics}")

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # After an error, such as a full disk, another one would hide it.
        with nullcontext() if kind is None else suppress(OSError, UserError):
            self._stack.close()
            if self._log is not None and any("loss" in row for row in read_metrics(self._log.path)):
                plot_losses(self._log.path, self._folder / "loss.png", self._unit)


def _wants_tensorboard(config: TrainConfig) -> bool:
    if config.tensorboard is None:
        return find_spec("tensorboardX") is not None
    return config.tensorboard
