"""Where two runs part: in their configs, their data, their metrics, their checkpoints."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxllm.deviation import relative_l2
from jaxllm.orbax_layout import list_steps
from jaxllm.strict_json import replace_nonfinite
from jaxllm.train.checkpoint_arrays import Key, StoredArray, open_step, read_metadata
from jaxllm.train.config import FREE_ON_RESUME, ConfigError, differences, load_stored, to_dict
from jaxllm.train.metrics import read_metrics

Records = dict[int, dict[str, float]]  # what was measured, by step


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the config, or of what a run knows its data by, in which two runs differ."""

    name: str
    a: Any
    b: Any
    is_free: bool  # whether it may differ without changing a number


@dataclasses.dataclass(frozen=True)
class Metric:
    """The first step at which a number that both runs logged differs, and how far it is later."""

    name: str
    step: int
    a: float
    b: float
    relative: float  # |b - a| / |a|
    steps: int  # at which it differs, of those that both logged
    most: float  # the largest relative difference of these


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of both runs' checkpoints in which they differ."""

    what: str  # parameter, first moment, second moment
    name: str
    relative_l2: float  # infinite where one run has none, or one of another shape


@dataclasses.dataclass(frozen=True)
class Diff:
    """What differs between two runs."""

    a: str
    b: str
    config: tuple[Field, ...]
    data: tuple[Field, ...]
    last_steps: tuple[int, int]  # of the logs
    metrics: tuple[Metric, ...]  # those that differ, the first to do so first
    checkpoints: tuple[int, ...]  # that both have, up to the first that differs
    arrays: tuple[Array, ...]  # of the last of these, the worst first

    @property
    def step(self) -> int | None:
        """The first step at which a number differs, as far as logs and checkpoints tell."""
        steps = [metric.step for metric in self.metrics[:1]]
        steps += self.checkpoints[-1:] if self.arrays else ()
        return min(steps, default=None)

    @property
    def same(self) -> bool:
        """Whether all numbers that both have are the same bits, and their data are the same."""
        return self.step is None and not self.data

    def to_json(self) -> dict[str, Any]:
        """Everything, as data; numbers that are not finite are null."""
        return replace_nonfinite({"same": self.same, "step": self.step, **dataclasses.asdict(self)})


def diff_runs(a: str | Path, b: str | Path) -> Diff:
    """Where the run in folder `b` parts from the one in `a`. Arrays are read one at a time.

    Raises ConfigError if a folder holds no run, naming both if neither does.
    """
    folders = Path(a), Path(b)
    if problems := [problem for folder in folders for problem in _problems(folder)]:
        raise ConfigError("\n".join(problems))
    one, other = (to_dict(load_stored(folder / "config.yaml")) for folder in folders)
    logs = [_records(folder / "metrics.jsonl") for folder in folders]
    steps = [list_steps(folder) for folder in folders]
    if not (logs[0].keys() & logs[1].keys() or steps[0].keys() & steps[1].keys()):
        raise ConfigError(f"{a} and {b} have no step in common, logged or saved")
    checkpoints, arrays = _first_checkpoint(*steps)
    return Diff(
        str(a),
        str(b),
        tuple(
            Field(name, old, new, name.partition(".")[0] in FREE_ON_RESUME)
            for name, old, new in differences(one, other)
        ),
        tuple(Field(*found, is_free=False) for found in _data(*steps)),
        (max(logs[0], default=0), max(logs[1], default=0)),
        tuple(sorted(_metrics(*logs), key=lambda metric: metric.step)),
        checkpoints,
        arrays,
    )


def _problems(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{folder} is not a folder"
        return
    missing = [name for name in ("config.yaml", "metrics.jsonl") if not (folder / name).is_file()]
    if missing:
        yield f"{folder} is not a run of `jaxllm train`: it has no {' and no '.join(missing)}"


def _records(path: Path) -> Records:
    """The log by step: what was held out has a line of its own."""
    found: Records = {}
    for record in read_metrics(path):
        numbers = {name: value for name, value in record.items() if name != "step"}
        found.setdefault(int(record["step"]), {}).update(numbers)
    return found


def _metrics(a: Records, b: Records) -> Iterator[Metric]:
    """Of each number in the order of the log. A run may log one less often than the other."""
    both = sorted(a.keys() & b.keys())
    for name in dict.fromkeys(name for step in both for name in a[step]):
        apart = {
            step: _apart(a[step][name], b[step][name])
            for step in both
            if name in a[step] and name in b[step] and not _is_same(a[step][name], b[step][name])
        }
        if apart:
            step = min(apart)
            first = (a[step][name], b[step][name], apart[step])
            yield Metric(name, step, *first, len(apart), max(apart.values()))


def _is_same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _apart(a: float, b: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(b - a) / abs(a) if a else math.inf


def _data(a: dict[int, Path], b: dict[int, Path]) -> Iterator[tuple[str, Any, Any]]:
    """What differs in what the runs know their data by, which stands in every checkpoint."""
    if a and b:
        one, other = (read_metadata(next(iter(steps.values())))["data"] for steps in (a, b))
        yield from differences(one, other)


def _first_checkpoint(
    a: dict[int, Path], b: dict[int, Path]
) -> tuple[tuple[int, ...], tuple[Array, ...]]:
    """The steps of which both have a checkpoint, up to the first that differs, and how it does."""
    compared: list[int] = []
    for step in sorted(a.keys() & b.keys()):
        compared.append(step)
        if found := list(_arrays(open_step(a[step]), open_step(b[step]))):
            found.sort(key=lambda array: -array.relative_l2)
            return tuple(compared), tuple(found)
    return tuple(compared), ()


def _arrays(a: dict[Key, StoredArray], b: dict[Key, StoredArray]) -> Iterator[Array]:
    for what, name in {**a, **b}:
        one, other = a.get((what, name)), b.get((what, name))
        if one is None or other is None or one.shape != other.shape:
            yield Array(what, name, math.inf)
            continue
        ours, theirs = other.read(), one.read()
        if ours.tobytes() != theirs.tobytes():
            yield Array(what, name, relative_l2(ours, theirs))
