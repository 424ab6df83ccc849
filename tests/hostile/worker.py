"""`python tests/hostile/worker.py ROOT SEED START COUNT`: tries damaged files, a JSON line each."""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from jaxllm.cli import main  # before tests/, which has a folder of that name

sys.path.append(str(Path(__file__).parents[1]))
from hostile.mutations import mutate
from hostile.targets import TARGETS, Target

USER_STATUSES = (0, 1, 2)


def work(root: Path, seed: int, start: int, count: int) -> None:
    """Tries the files of these numbers; writes a line for the warm-up, then one for each."""
    _warm_up(root)
    _report({})
    for number in range(start, count):
        target = TARGETS[number % len(TARGETS)]
        with tempfile.TemporaryDirectory() as copy:
            folder = shutil.copytree(root / target.folder, Path(copy) / target.folder)
            file = folder / target.file
            file.write_bytes(mutate(file.read_bytes(), random.Random(f"{seed}-{number}")))
            before = _forget_peak()
            _report({**_try(target, folder), "peak_bytes": _memory("VmHWM") - before})


def _try(target: Target, folder: Path) -> dict:
    """Runs the command of a target on its damaged folder."""
    printed, began = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = _run(target, folder)
    seconds, text = time.process_time() - began, printed.getvalue()
    problem = ""
    if status not in USER_STATUSES or "Traceback" in text:
        problem = f"status {status}: {text[-600:]}"
    elif "\x1b" in text:
        problem = f"an escape code is printed: {text[:600]!r}"
    elif status and not text.strip():
        problem = f"status {status} without a message"
    return {"status": status, "cpu_seconds": seconds, "problem": problem}


def _run(target: Target, folder: Path) -> int:
    try:
        return main([part.format(folder) for part in target.command])
    except SystemExit as stopped:
        return int(stopped.code or 0)


def _warm_up(root: Path) -> None:
    """Runs each command on sound files, so that imports and compilation are not counted."""
    with tempfile.TemporaryDirectory() as copy:
        for target in {target.command: target for target in TARGETS}.values():
            folder = Path(copy) / target.folder
            shutil.copytree(root / target.folder, folder, dirs_exist_ok=True)
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                _run(target, folder)


def _forget_peak() -> int:
    """Makes the kernel measure the peak anew; returns the memory in use now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(what: str) -> int:
    """Returns a figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def _report(line: dict) -> None:
    os.write(_RESULTS, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    _RESULTS = os.dup(1)  # what the commands' libraries print does not get between the lines
    os.dup2(2, 1)
    work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
