"""Metric logging: a JSON Lines file and, optionally, TensorBoard and W&B."""

import json
import secrets
from collections.abc import Mapping
from importlib import import_module
from itertools import count
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any, Self, SupportsFloat

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.storage.paths import open_path
from jaxllm.storage.whole_file import write_whole

Record = dict[str, float]  # "step" and the metrics of that step
# Names of metrics that depend on the machine begin so; those of a step depend on the run alone.
SPEED, MEMORY = "speed/", "memory/"


def read_metrics(path: str | Path) -> list[Record]:
    """Reads a `metrics.jsonl`, ignoring an unfinished last line, as a killed run leaves it.

    Raises:
        UserError: another line is not a JSON object with a step and numbers; names the file and
            line.
    """
    lines = open_path(path).read_bytes().split(b"\n")[:-1]
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def read_results(path: str | Path) -> list[Record]:
    """Reads a `metrics.jsonl` without records of speed and memory: what equal runs have equal."""
    return [
        record
        for record in read_metrics(path)
        if not any(name.startswith((SPEED, MEMORY)) for name in record)
    ]


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


def _number(value: SupportsFloat) -> float:
    return int(value) if isinstance(value, Integral) else float(value)


def _truncate_or_move(path: Path, resume_at: int | None) -> None:
    """Drops the records after step `resume_at`; without one, renames the file of the old run."""
    if resume_at is None:
        names = (f"metrics.old.{number}.jsonl" for number in count(1))
        path.replace(next(old for old in map(path.with_name, names) if not old.exists()))
        return
    kept = [record for record in read_metrics(path) if record["step"] <= resume_at]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


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
