"""Metric logging: a JSON Lines file, a progress line and, optionally, TensorBoard and W&B."""

import json
import math
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from itertools import count
from numbers import Integral
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any, Self, SupportsFloat, TextIO

import rich.progress
from rich.console import Console

from jaxllm.errors import MissingPackageError, UserError

Record = dict[str, float]  # "step" and the metrics of that step


def read_metrics(path: str | Path) -> list[Record]:
    """Reads a `metrics.jsonl`, ignoring an unfinished last line, as a killed run leaves it.

    Raises:
        UserError: another line is not a JSON object with a step and numbers; names the file and
            line.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or "step" not in record:
        raise UserError(f"{where}: expected a JSON object with a step, found {line[:80]!r}")
    allowed = dict.fromkeys(record, (int, float)) | {"step": (int,)}
    wrong = [name for name, value in record.items() if type(value) not in allowed[name]]
    if wrong:
        raise UserError(
            "\n".join(
                f"{where}: {name} is {json.dumps(record[name])[:80]}, not "
                + ("a whole number" if name == "step" else "a number")
                for name in wrong
            )
        )
    return record


class MetricLog:
    """Appends metrics to `directory/metrics.jsonl` and, optionally, to TensorBoard and W&B.

    Construct it in one process only.

    Args:
        directory: created if it does not exist.
        resume_at: for a resumed run, the step of its checkpoint: records after that step are
            removed. None for a new run: an existing file is renamed to `metrics.old.1.jsonl` or
            the next free number.
        tensorboard: whether to log to TensorBoard, in `directory/tensorboard`.
        wandb: the Weights & Biases project to log to, if any.

    Raises:
        MissingPackageError: TensorBoard or W&B is not installed; names the extra to install.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        resume_at: int | None = None,
        tensorboard: bool = False,
        wandb: str | None = None,
    ):
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._tensorboard = _tensorboard_writer(folder, resume_at) if tensorboard else None
        self._wandb = _wandb_run(wandb, folder, resume_at) if wandb else None
        if self.path.exists() and self.path.stat().st_size:
            _truncate_or_move(self.path, resume_at)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, numbers: Mapping[str, SupportsFloat]) -> None:
        """Appends one record in full precision and flushes it to the file."""
        record = {"step": step, **{name: _number(value) for name, value in numbers.items()}}
        line = json.dumps(record) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            reason = f"{error.strerror} ({len(line)} bytes to append)"
            raise OSError(error.errno, reason, str(self.path)) from None
        if self._tensorboard is not None:
            for name in numbers:
                self._tensorboard.add_scalar(name, record[name], step)
        if self._wandb is not None:
            self._wandb.log(record)

    def close(self) -> None:
        """Closes the file and the services; leaving a `with` block does the same."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """Progress of a run: a live line on a terminal, otherwise a line every `log_every` steps.

    The speed is the mean of the last 1000 steps. It counts neither the first step of this process,
    which includes compilation, nor the time spent `paused`.

    Args:
        steps: the steps of the whole run.
        start: the step that a resumed run starts from.
        tokens_per_step: for the speed in tokens per second.
        log_every: steps between lines if `stream` is not a terminal.
        stream: where to write; by default stderr.
    """

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        tokens_per_step: int,
        log_every: int = 10,
        stream: TextIO | None = None,
    ):
        self._paused = 0.0  # seconds
        self._pause_began: float | None = None
        self._stream = sys.stderr if stream is None else stream
        self._steps, self._tokens, self._every = steps, tokens_per_step, log_every
        console = Console(file=self._stream)
        # The display also measures the speed for plain lines, for which it is never started.
        is_capable = console.is_terminal and not console.is_dumb_terminal
        self._live = self._stream.isatty() and is_capable
        self._display = rich.progress.Progress(
            "step {task.completed}/{task.total}",
            rich.progress.BarColumn(),
            "{task.description}",
            rich.progress.TimeRemainingColumn(),
            console=console,
            get_time=self._time,
            # By default rich forgets steps after 30 s, and has no speed if they take longer.
            speed_estimate_period=math.inf,
        )
        self._task = self._display.add_task("", total=steps, completed=start)

    def update(self, step: int, loss: float) -> None:
        """Reports that `step` steps are complete, and the loss per target of the last one."""
        self._display.update(self._task, completed=step)
        task = self._display.tasks[0]
        speed = "" if task.speed is None else f"  {task.speed * self._tokens:,.0f} tokens/s"
        text = f"loss {loss:.4f}{speed}"
        if self._live:
            self._display.update(self._task, description=text)
        elif step % self._every == 0 or step == self._steps:
            seconds = task.time_remaining
            left = "" if not seconds else f"  {timedelta(seconds=round(seconds))} left"
            self._stream.write(f"step {step}/{self._steps}  {text}{left}\n")
            self._stream.flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside, as of an evaluation, for the speed."""
        self._pause_began = monotonic()
        try:
            yield
        finally:
            self._paused += monotonic() - self._pause_began
            self._pause_began = None

    def _time(self) -> float:
        """The clock of the speed, which stands still while paused."""
        began = self._pause_began
        return (monotonic() if began is None else began) - self._paused

    def held_out(self, step: int, loss: float) -> None:
        """Reports the loss per held-out target after `step` steps, on a line of its own."""
        line = f"step {step}/{self._steps}  held-out loss {loss:.4f}"
        if self._live:
            self._display.console.print(line, highlight=False)
        else:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def __enter__(self) -> Self:
        if self._live:
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:  # otherwise rich would print an empty line
            self._display.stop()


def _number(value: SupportsFloat) -> float:
    return int(value) if isinstance(value, Integral) else float(value)


def _truncate_or_move(path: Path, resume_at: int | None) -> None:
    """Drops the records after step `resume_at`; without one, renames the file of the old run."""
    if resume_at is None:
        names = (f"metrics.old.{number}.jsonl" for number in count(1))
        path.replace(next(old for old in map(path.with_name, names) if not old.exists()))
        return
    kept = [record for record in read_metrics(path) if record["step"] <= resume_at]
    rewritten = path.with_suffix(".tmp")
    rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    rewritten.replace(path)


def _tensorboard_writer(folder: Path, resume_at: int | None) -> Any:
    tensorboard = _optional("tensorboardX", extra="tensorboard")
    purge_step = None if resume_at is None else resume_at + 1
    return tensorboard.SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)


def _wandb_run(project: str, folder: Path, resume_at: int | None) -> Any:
    wandb = _optional("wandb", extra="wandb")
    id_file = folder / "wandb_id"
    if resume_at is None or not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    name, run_id = folder.resolve().name, id_file.read_text()
    run = wandb.init(project=project, name=name, dir=str(folder), id=run_id, resume="allow")
    # A resumed run repeats steps, which W&B's own step counter rejects.
    run.define_metric("*", step_metric="step")
    return run


def _optional(module: str, *, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"logging to {extra} needs {module}, which is not installed: "
            f"pip install 'jaxllm[{extra}]'"
        ) from error
