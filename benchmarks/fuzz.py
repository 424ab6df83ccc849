"""`python benchmarks/fuzz.py [COUNT [SEED]]`: damages files of every format and has them read.

Prints each that is neither read nor refused with a message, the largest CPU time, and the peak
memory beyond what the commands take for sound files.
"""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jaxllm.cli  # noqa: F401 - before tests/, which has a folder of that name

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hostile.trial import Outcome, run_trials


def main(count: int = 2000, seed: int = 0) -> int:
    """Runs the trials; returns 1 if a command did anything but read or refuse a file."""
    outcomes: list[Outcome] = []
    for outcome in run_trials(count, seed):
        outcomes.append(outcome)
        if outcome.problem:
            place = f"{outcome.target.folder}/{outcome.target.file}"
            print(f"{outcome.number}: {place}: {outcome.problem}", flush=True)
    tried = Counter(f"{one.target.folder}/{one.target.file}" for one in outcomes)
    wrong = sum(bool(outcome.problem) for outcome in outcomes)
    slowest = max(outcomes, key=lambda one: one.cpu_seconds)
    peak = max(one.peak_bytes for one in outcomes)
    print(
        f"{count} damaged files of {len(tried)} kinds, seed {seed}: {wrong} neither read nor "
        f"refused; at most {slowest.cpu_seconds:.1f} s of CPU time ({slowest.target.file}) and "
        f"{peak / 2**20:.0f} MiB of memory"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
