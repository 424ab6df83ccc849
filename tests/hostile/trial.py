"""Trials: commands read damaged files in a process that may crash, hang or use too much memory."""

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .sound import write_all
from .targets import TARGETS, Target

MAX_SECONDS = 5.0  # of CPU time for a command, beyond its imports and compilation
MAX_BYTES = 500 << 20  # of memory, beyond what was in use before the command
WAIT_SECONDS = 90.0  # until a command counts as hanging
WARM_UP_SECONDS = 600.0


class Outcome(NamedTuple):
    """Result of a command on a damaged file; `problem` is "" if it read or refused the file."""

    number: int
    target: Target
    problem: str
    cpu_seconds: float = 0.0
    peak_bytes: int = 0  # of memory, beyond what was in use before


def run_trials(count: int, seed: int = 0) -> Iterator[Outcome]:
    """Yields the outcome of each trial; a process that crashed or hung is replaced."""
    with tempfile.TemporaryDirectory() as root:
        write_all(Path(root))
        number = 0
        while number < count:
            for outcome in _outcomes(root, seed, number, count):
                yield outcome
                number += 1


def _outcomes(root: str, seed: int, start: int, count: int) -> Iterator[Outcome]:
    """Yields the outcomes of one process: of the last trial, or until it crashes or hangs."""
    script = str(Path(__file__).with_name("worker.py"))
    command = [sys.executable, script, root, *map(str, (seed, start, count))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        try:
            assert _read(worker, WARM_UP_SECONDS) == {}, "sound files are not read"
            for number in range(start, count):
                target, line = TARGETS[number % len(TARGETS)], _read(worker, WAIT_SECONDS)
                if isinstance(line, str):
                    yield Outcome(number, target, line)
                    return
                yield Outcome(
                    number, target, _problem(line), line["cpu_seconds"], line["peak_bytes"]
                )
        finally:
            worker.kill()


def _read(worker: subprocess.Popen, seconds: float) -> dict[str, Any] | str:
    """Returns what the worker reports next, or why it reports nothing."""
    assert worker.stdout is not None
    if not select.select([worker.stdout], [], [], seconds)[0]:
        return "the command hangs"
    line = worker.stdout.readline()
    return json.loads(line) if line else "the process crashed"


def _problem(line: dict[str, Any]) -> str:
    """Returns what the command did wrong, or ""."""
    if line["cpu_seconds"] > MAX_SECONDS:
        return f"it took {line['cpu_seconds']:.1f} s"
    if line["peak_bytes"] > MAX_BYTES:
        return f"it took {line['peak_bytes'] >> 20} MiB"
    return line["problem"]
