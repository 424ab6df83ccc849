"""Run comparison: where two runs differ in config, data, metrics and checkpoints."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxllm.checkpointing.orbax_layout import list_steps, read_step
from jaxllm.checkpointing.stored_array import StoredArray, StoredLayer
from jaxllm.differences import differences
from jaxllm.numerics.distance import relative_l2
from jaxllm.storage.paths import open_path
from jaxllm.strict_json import replace_nonfinite
from jaxllm.train.checkpoint_arrays import Key, open_step
from jaxllm.train.config import ConfigError, load_stored, to_dict
from jaxllm.train.monitoring.metrics import read_results

# Config fields that change no number of a run, but where it is written and what is logged.
HARMLESS = (*("output", "eval_every", "save_every", "keep", "logging", "export", "speed"),)

AnyArray = StoredArray | StoredLayer
Records = dict[int, dict[str, float]]  # step -> metric name -> value


@dataclasses.dataclass(frozen=True)
class FieldDifference:
    """A field of the config or of the data fingerprint that differs between two runs."""

    name: str
    a: Any
    b: Any
    is_free: bool  # whether the field has no effect on any number


@dataclasses.dataclass(frozen=True)
class MetricDifference:
    """A logged metric that differs: its first differing step and its largest difference."""

    name: str
    step: int  # the first step at which it differs
    a: float  # the values at that step
    b: float
    relative: float  # |b - a| / |a| at that step
    steps: int  # number of steps at which it differs, of those that both runs logged
    most: float  # the largest relative difference over these steps


@dataclasses.dataclass(frozen=True)
class ArrayDifference:
    """An array that differs between the checkpoints of two runs."""

    what: str  # parameter, first moment or second moment
    name: str
    relative_l2: float  # infinite if one run lacks the array or has another shape


@dataclasses.dataclass(frozen=True)
class Diff:
    """All differences between two runs."""

    a: str
    b: str
    config: tuple[FieldDifference, ...]
    data: tuple[FieldDifference, ...]
    last_steps: tuple[int, int]  # the last logged step of each run
    metrics: tuple[MetricDifference, ...]  # metrics that differ, by first differing step
    checkpoints: tuple[int, ...]  # steps of the common checkpoints, up to the first that differs
    arrays: tuple[ArrayDifference, ...]  # that differ in the last of these, largest error first

    @property
    def step(self) -> int | None:
        """The first step with a difference in the logs or checkpoints, or None."""
        steps = [metric.step for metric in self.metrics[:1]]
        steps += self.checkpoints[-1:] if self.arrays else ()
        return min(steps, default=None)

    @property
    def same(self) -> bool:
        """Whether all numbers that both runs have are identical, and their data are the same."""
        return self.step is None and not self.data

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as JSON data; numbers that are not finite become null."""
        return replace_nonfinite({"same": self.same, "step": self.step, **dataclasses.asdict(self)})


def diff_runs(a: str | Path, b: str | Path) -> Diff:
    """Compares two runs. Checkpoint arrays are read one at a time.

    Args:
        a: the folder of the reference run.
        b: the folder of the other run.

    Raises:
        ConfigError: a folder does not hold a run (both are named if neither does), or the runs
            have no step in common.
        CheckpointError: this version of jaxllm cannot read a checkpoint.
        OSError: a file cannot be read.
    """
    folders = open_path(a), open_path(b)
    if problems := [problem for folder in folders for problem in _problems(folder)]:
        raise ConfigError("\n".join(problems))
    one, other = (to_dict(load_stored(folder / "config.yaml")) for folder in folders)
    logs = [_records(folder / "metrics.jsonl") for folder in folders]
    steps = [list_steps(folder) for folder in folders]
    if not (logs[0].keys() & logs[1].keys() or steps[0].keys() & steps[1].keys()):
        raise ConfigError(f"{a} and {b} have no step in common in their logs or checkpoints")
    checkpoints, arrays = _first_checkpoint(*steps)
    return Diff(
        str(a),
        str(b),
        tuple(
            FieldDifference(name, old, new, name.partition(".")[0] in HARMLESS)
            for name, old, new in differences(one, other)
        ),
        tuple(FieldDifference(*found, is_free=False) for found in _data(*steps)),
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
        yield f"{folder} is not the output of `jaxllm train`: it has no {' and no '.join(missing)}"


def _records(path: Path) -> Records:
    """Reads a log and merges the lines of a step; the held-out loss has a line of its own."""
    found: Records = {}
    for record in read_results(path):
        numbers = {name: value for name, value in record.items() if name != "step"}
        found.setdefault(int(record["step"]), {}).update(numbers)
    return found


def _metrics(a: Records, b: Records) -> Iterator[MetricDifference]:
    """Yields the metrics that differ, in log order, compared at the steps that both runs logged."""
    both = sorted(a.keys() & b.keys())
    for name in dict.fromkeys(name for step in both for name in a[step]):
        errors = {
            step: _relative_error(a[step][name], b[step][name])
            for step in both
            if name in a[step] and name in b[step] and not _is_same(a[step][name], b[step][name])
        }
        if errors:
            step = min(errors)
            first = (a[step][name], b[step][name], errors[step])
            yield MetricDifference(name, step, *first, len(errors), max(errors.values()))


def _is_same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _relative_error(a: float, b: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(b - a) / abs(a) if a else math.inf


def _data(a: dict[int, Path], b: dict[int, Path]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the differences between the data fingerprints, which every checkpoint stores."""
    if a and b:
        one, other = (_fingerprint(next(iter(steps.values()))) for steps in (a, b))
        yield from differences(one, other)


def _fingerprint(step: Path) -> dict[str, Any]:
    return read_step(step, "data").about["data"]


def _first_checkpoint(
    a: dict[int, Path], b: dict[int, Path]
) -> tuple[tuple[int, ...], tuple[ArrayDifference, ...]]:
    """Returns the common checkpoints up to the first that differs, and its differing arrays."""
    compared: list[int] = []
    for step in sorted(a.keys() & b.keys()):
        compared.append(step)
        if found := list(_arrays(open_step(a[step]), open_step(b[step]))):
            found.sort(key=lambda array: -array.relative_l2)
            return tuple(compared), tuple(found)
    return tuple(compared), ()


def _arrays(a: Mapping[Key, AnyArray], b: Mapping[Key, AnyArray]) -> Iterator[ArrayDifference]:
    for what, name in {**a, **b}:
        one, other = a.get((what, name)), b.get((what, name))
        if one is None or other is None or one.shape != other.shape:
            yield ArrayDifference(what, name, math.inf)
            continue
        first, second = one.read(), other.read()
        if first.tobytes() != second.tobytes():
            yield ArrayDifference(what, name, relative_l2(second, first))
