"""`python benchmarks/mutations.py [FAMILY ...]`: mutation tests of parity, for docs/mutations.md.

With families as arguments, it tests only these, prints the results and does not write the page.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # idle PyTorch threads would spin
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jax

import jaxllm  # noqa: F401 - before tests/, which has a folder of that name

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from mutants import page  # noqa: E402
from mutants.trial import (  # noqa: E402
    FAMILIES,
    Outcome,
    Trial,
    build,
    compare_honest,
    run,
    trials,
)

PAGE = ROOT / "docs" / "mutations.md"
SEEDS = range(1, 21)


def try_all(family: str) -> dict[Trial, Outcome]:
    """Tries every bug in a family's model; prints those that are missed or misplaced."""
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        pair = build(family, Path(folder))
    for trial in trials(family, pair.model):
        outcomes[trial] = run(trial, pair)
        if not outcomes[trial].is_right:
            print(trial, outcomes[trial], flush=True)
    return outcomes


def alarms_of(family: str) -> list[str]:
    """Returns the false alarms on correct models, with other weights and tokens for each seed."""
    found = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            first = compare_honest(build(family, Path(folder), seed))
        if first is not None:
            found.append(f"{family}, seed {seed}, {first.path}, {first.ratio:.2g} thresholds")
    return found


if __name__ == "__main__":
    outcomes: dict[Trial, Outcome] = {}
    alarms: list[str] = []
    for family in sys.argv[1:] or FAMILIES:
        start = time.perf_counter()
        outcomes |= try_all(family)
        alarms += alarms_of(family)
        jax.clear_caches()
        print(family, f"{time.perf_counter() - start:.0f} s", *alarms, flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page.render(outcomes, len(SEEDS) * len(FAMILIES), alarms))
