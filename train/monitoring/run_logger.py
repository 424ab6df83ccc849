"""Logging of a run: metrics file, progress line and loss plot, written by process 0."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from time import monotonic
from types import MappingProxyType
from typing import Any

import jax
from jax import Array

from jaxllm.errors import NonFiniteError
from jaxllm.storage.mirror import Mirror
from jaxllm.storage.paths import is_remote
from jaxllm.train.config import TrainConfig, save_config
from jaxllm.train.speed.stopwatch import Rate, Stopwatch, memory_in_use

from .bad_step import BAD_STEP, MOST_SKIPPED, describe_bad_step
from .live_plot import LivePlot
from .metrics import MEMORY, SPEED, MetricLog, read_metrics
from .plot import plot_losses
from .progress import Progress

LOSS, SHARE = "loss/", "share/"  # metrics of a source of a mixture begin so; see `step`
# Of a run on an object store, what its log continues.
FETCHED = ("config.yaml", "metrics*.jsonl", "wandb_id")


class RunLogger:
    """Writes a run's metrics to its log and progress line, and its loss plot now and on exit.

    Only process 0 writes. A step's metrics are fetched after the next step has been dispatched, so
    that no device waits.
    """

    def __init__(
        self, config: TrainConfig, folder: Any, resume_at: int | None, unit: str, rate: Rate
    ):
        self._pending: tuple[int, dict[str, Array]] | None = None
        self._stack = ExitStack()
        self._log: MetricLog | None = None
        self._stopwatch = Stopwatch(rate)
        self._skipped = 0  # bad steps up to now, without a good one between them
        self._config, self._unit, self._name = config, unit, folder.name
        self._mirror: Mirror | None = None
        self.folder = folder  # of this machine, also if the run is on an object store
        if jax.process_index() > 0:
            return
        if is_remote(folder):
            self._mirror = self._stack.enter_context(Mirror(folder, FETCHED))
            self.folder = folder = self._mirror.local
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder / "config.yaml")
        self._log = self._stack.enter_context(
            MetricLog(
                folder,
                resume_at=resume_at,
                tensorboard=_wants_tensorboard(config),
                wandb=config.logging.wandb,
            )
        )
        progress = Progress(
            config.steps,
            start=resume_at or 0,
            tokens_per_step=rate.tokens_per_step,
            mfu_of=rate.mfu,
            log_every=config.logging.every,
        )
        self._progress = self._stack.enter_context(progress)
        self._plot = LivePlot(self._draw)

    def add(self, step: int, metrics: dict[str, Array]) -> None:
        """Queues a step's metrics and writes those of the previous step."""
        self.flush()
        self._pending = step, metrics

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data, unless the devices had a step to compute."""
        start = monotonic()
        yield
        if self._pending is None or all(map(_is_ready, self._pending[1].values())):
            self._stopwatch.add("data_wait", monotonic() - start)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Says that the training step is compiled, and how long it took."""
        start = monotonic()
        if self._log is not None:
            self._progress.show("compiling the training step")
        yield
        if self._log is not None:
            self._progress.say(f"compiled the training step in {monotonic() - start:.1f} s")

    @contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """Writes the queued metrics; counts the time inside as this part, not for the speed."""
        self.flush()
        start = monotonic()
        with nullcontext() if self._log is None else self._progress.paused():
            yield
        self._stopwatch.add(part, monotonic() - start)

    def held_out(
        self, step: int, loss: float | None, by_source: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Writes the held-out loss, after the metrics of its step; None is not written.

        Args:
            step: steps taken.
            loss: mean over the held-out targets.
            by_source: the same for each source of a mixture.
        """
        self.flush()
        if self._log is not None and loss is not None:
            sources = {f"held_out_loss/{name}": value for name, value in by_source.items()}
            self._log.write(step, {"held_out_loss": loss, **sources})
            self._progress.held_out(step, loss)

    def copy(self) -> None:
        """Copies the log of a run on an object store, which otherwise happens now and then."""
        if self._mirror is not None:
            self._mirror.copy()

    def flush(self) -> None:
        """Writes the queued metrics.

        Raises:
            NonFiniteError: the step is bad, and the config does not say to skip it; or one of too
                many in a row.
        """
        if self._pending is None:
            return
        step, pending = self._pending
        self._pending = None
        values = jax.device_get([*pending.values()])  # all at once
        metrics = _without_absent(dict(zip(pending, map(float, values), strict=True)))
        self._stopwatch.step()
        if self._log is not None:
            self._log.write(step, metrics)
            self._progress.update(step, metrics["loss"])
            if step % self._config.logging.every == 0 or step == self._config.steps:
                self._write_speed(step)
            self._plot.update()
        is_bad = bool(metrics.get(BAD_STEP))
        self._skipped = self._skipped + 1 if is_bad else 0
        if not is_bad and all(map(math.isfinite, metrics.values())):
            return
        describe = partial(describe_bad_step, self._config, step, metrics)
        if not is_bad or self._config.optimizer.bad_steps.action == "stop":
            raise NonFiniteError(describe("is not saved"))
        if self._skipped == MOST_SKIPPED:
            raise NonFiniteError(describe(f"is the {MOST_SKIPPED}th bad one in a row"))
        if self._log is not None:
            self._progress.say(describe("is skipped"))

    def _write_speed(self, step: int) -> None:
        """Writes the speed since the last such record, and the memory, as a record of their own."""
        found = {f"{SPEED}{name}": value for name, value in self._stopwatch.report().items()}
        if self._log is not None and found:
            memory = {f"{MEMORY}{name}": value for name, value in memory_in_use().items()}
            self._log.write(step, found | memory)

    def _draw(self) -> None:
        if self._log is None:
            return
        losses = (row.get("loss", math.nan) for row in read_metrics(self._log.path))
        if any(map(math.isfinite, losses)):
            plot_losses(self._log.path, self.folder / "loss.png", self._unit, self._name)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # After an error, such as a full disk, another one would hide it.
        hiding = nullcontext() if kind is None else suppress(Exception)
        with hiding, self._stack:
            if self._log is not None:
                self._plot.close()


def _is_ready(x: Any) -> bool:
    """Whether an array is computed; does not wait."""
    return x.is_ready()


def _wants_tensorboard(config: TrainConfig) -> bool:
    if config.logging.tensorboard is None:
        return find_spec("tensorboardX") is not None
    return config.logging.tensorboard


def _without_absent(metrics: dict[str, float]) -> dict[str, float]:
    """Leaves out the loss of the sources of a mixture that have no target in this batch."""
    absent = {
        f"{LOSS}{name.removeprefix(SHARE)}"
        for name, value in metrics.items()
        if name.startswith(SHARE) and not value
    }
    return {name: value for name, value in metrics.items() if name not in absent}
