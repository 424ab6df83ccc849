"""Where a run's numbers go: a file of JSON lines, a progress line and, if asked, two services."""

import json
import secrets
import sys
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from itertools import count
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any, Self, SupportsFloat, TextIO

import rich.progress
from rich.console import Console

from jaxllm.errors import MissingPackageError, UserError

Record = dict[str, float]  # "step" and whatever was measured there


def read_metrics(path: str | Path) -> list[Record]:
    """The records of a `metrics.jsonl`, without a last line that a killed run left unfinished.

    Raises UserError naming file and line if another line is not a JSON object with a step.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or "step" not in record:
        raise UserError(f"{where}: expected a JSON object with a step, found {line[:80]!r}")
    return record


class MetricLog:
    """Appends to `directory/metrics.jsonl` and, if asked, to TensorBoard and W&B.

    A resumed run takes back what it had written after step `resume_at`. A new run (None) moves a
    file it finds to `metrics.old.1.jsonl` or the next free number. Construct it in one process
    only. Raises MissingPackageError naming the extra to install.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        resume_at: int | None = None,
        tensorboard: bool = False,
        wandb: str | None = None,  # the project
    ):
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._tensorboard = _tensorboard_writer(folder, resume_at) if tensorboard else None
        self._wandb = _wandb_run(wandb, folder, resume_at) if wandb else None
        if self.path.exists() and self.path.stat().st_size:
            _take_back(self.path, resume_at)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, numbers: Mapping[str, SupportsFloat]) -> None:
        """Adds one line, in full precision, that is in the file when this returns."""
        record = {"step": step, **{name: _number(value) for name, value in numbers.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name in numbers:
                self._tensorboard.add_scalar(name, record[name], step)
        if self._wandb is not None:
            self._wandb.log(record)

    def close(self) -> None:
        """Ends the file and the services; also what leaving a `with` block does."""
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
    """A line that follows the run on a terminal; elsewhere a plain one every `log_every` steps."""

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        tokens_per_step: int,
        log_every: int = 10,
        stream: TextIO | None = None,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._steps, self._tokens, self._every = steps, tokens_per_step, log_every
        console = Console(file=self._stream)
        # Without a display this still measures speed, which is all that a plain line needs.
        is_screen = console.is_terminal and not console.is_dumb_terminal
        self._live = self._stream.isatty() and is_screen
        columns = ("{task.completed}/{task.total}", rich.progress.BarColumn(), "{task.description}")
        self._display = rich.progress.Progress(
            *columns, rich.progress.TimeRemainingColumn(), console=console
        )
        self._task = self._display.add_task("", total=steps, completed=start)

    def update(self, step: int, loss: float) -> None:
        """Says that `step` steps are done, the last of them with this loss per token."""
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

    def __enter__(self) -> Self:
        if self._live:
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()


def _number(value: SupportsFloat) -> float:
    return int(value) if isinstance(value, Integral) else float(value)


def _take_back(path: Path, resume_at: int | None) -> None:
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
    memo = folder / "wandb_id"
    if resume_at is None or not memo.exists():
        memo.write_text(secrets.token_hex(4))
    name, run_id = folder.resolve().name, memo.read_text()
    run = wandb.init(project=project, name=name, dir=str(folder), id=run_id, resume="allow")
    # A resumed run repeats steps, which W&B's own step counter would refuse.
    run.define_metric("*", step_metric="step")
    return run


def _optional(module: str, *, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{module} is asked for and not installed: pip install jaxllm[{extra}]"
        ) from error
