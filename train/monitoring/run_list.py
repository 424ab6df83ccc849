"""The runs in a folder: which of them train, how far they are and what they have learned."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxllm.errors import MissingFileError, UserError
from jaxllm.storage.paths import is_remote, open_path
from jaxllm.strict_json import replace_nonfinite
from jaxllm.train.config import load_stored
from jaxllm.train.restarts import folder_lock

from .metrics import Record, read_metrics

State = Literal["running", "finished", "stopped", "failed", "damaged"]
MOST_DEPTH = 3  # folders below the one that is listed


@dataclasses.dataclass(frozen=True)
class RunState:
    """One run as its folder shows it."""

    name: str  # relative to the folder that was listed
    state: State  # failed: the last step has a loss that is not finite; damaged: see `problem`
    step: int  # the last that was logged
    steps: int | None  # of the whole run; None: its config cannot be read
    loss: float | None  # of the last step
    held_out_loss: float | None  # the last one
    tokens_per_s: float | None
    mfu: float | None
    seconds_ago: float  # since the log was written to
    problem: str | None  # why the config or the log cannot be read

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; numbers that are not finite become null."""
        return replace_nonfinite(dataclasses.asdict(self))


def list_runs(folder: str | Path) -> list[RunState]:
    """Returns the runs in a folder and below it, the one that was written to last at the end.

    Raises:
        MissingFileError: there is no such folder.
    """
    root = open_path(folder)
    if not root.is_dir():
        raise MissingFileError(f"{folder} is not a folder; runs are where `output` says")
    found = (_read(place, root) for place in _find(root, MOST_DEPTH))
    return sorted(found, key=lambda run: -run.seconds_ago)


def _find(folder: Any, depth: int) -> Iterator[Any]:
    if (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file():
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and (is_remote(inner) or not inner.is_symlink()):
                yield from _find(inner, depth - 1)


def _read(run: Any, root: Any) -> RunState:
    """Returns the state of a run, as far as it can be read."""
    steps, records, problem = None, [], None
    try:
        steps = load_stored(run / "config.yaml").steps
        records = read_metrics(run / "metrics.jsonl")
    except (UserError, OSError) as error:
        problem = str(error)
    trained = [record for record in records if "loss" in record]
    step = int(trained[-1]["step"]) if trained else 0
    loss = _last(trained, "loss")
    return RunState(
        name=str(run.relative_to(root)) if run != root else run.resolve().name,
        state="damaged" if steps is None or problem else _state(run, step, steps, loss),
        step=step,
        steps=steps,
        loss=loss,
        held_out_loss=_last(records, "held_out_loss"),
        tokens_per_s=_last(records, "speed/tokens_per_s"),
        mfu=_last(records, "speed/mfu"),
        seconds_ago=max(time.time() - _written(run / "metrics.jsonl"), 0.0),
        problem=problem,
    )


def _state(run: Any, step: int, steps: int, loss: float | None) -> State:
    if folder_lock.is_running(run):
        return "running"
    if loss is not None and not math.isfinite(loss):
        return "failed"
    return "finished" if step >= steps else "stopped"


def _written(file: Any) -> float:
    """When a file was written, in seconds since 1970."""
    return file.stat().mtime if is_remote(file) else file.stat().st_mtime


def _last(records: Sequence[Record], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if name in record), None)
