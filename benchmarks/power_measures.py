"""Measures of what parity sees: the weakest bugs, planted bugs, correct models on many inputs."""

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import zoo
from mutants.trial import Pair, run, trials
from weak_bugs import STRENGTHS, WeakBug

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.checkpoint import InputOptions, open_both
from jaxllm.interop.parity.levels.forward import judge, record_forward
from jaxllm.interop.parity.levels.sides import Comparison
from jaxllm.interop.parity.levels.table import levels_of
from jaxllm.interop.parity.recording.recording import Recording
from jaxllm.models import with_scanned_layers
from jaxllm.train import make_mesh

LEVELS = ("layers", "logits")
KINDS = ("text", "random tokens")
WORST = 5  # rows kept of those that cannot tell


class Subject(NamedTuple):
    """A correct model, and what its reference computes."""

    name: str
    recording: Recording
    model: Any


def subject(name: str, folder: Path) -> Subject:
    """Runs the reference of a checkpoint."""
    reference, model = open_both(folder)
    inputs = InputOptions().inputs(folder, reference, model)
    comparison = Comparison(reference=reference, model=model, inputs=inputs, levels=LEVELS)
    return Subject(name, record_forward(comparison), comparison.unstacked)


def weakest(one: Subject, bug: WeakBug) -> str:
    """Returns the lowest strength that is noticed, found by bisection."""
    if not bug.applies(one.model.config):
        return ""
    low, high = 0, len(STRENGTHS)  # the first `low` are noticed, those from `high` on are not
    while low < high:
        middle = (low + high) // 2
        if is_noticed(one, bug, STRENGTHS[middle]):
            low = middle + 1
        else:
            high = middle
    return f"{STRENGTHS[low - 1]:.0e}" if low else f"above {STRENGTHS[0]:.0e}"


def is_noticed(one: Subject, bug: WeakBug, strength: float) -> bool:
    """Whether the forward levels alone, without config and weights, notice the bug."""
    with bug.patch(strength):
        forward = judge(one.recording, bug.weaken(one.model, strength), LEVELS)
    return not all(tap.ok for tap in forward.taps)


def planted(
    folder: Path, is_new: Callable[[tuple[str, str]], bool]
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yields the bugs of docs/mutations.md that a forward pass shows, and what parity says."""
    reference, model = open_both(folder)
    model = with_scanned_layers(model, False)
    tokens_BT = InputOptions(batch_size=1).inputs(folder, reference, model).target
    pair = Pair(reference, model, tokens_BT, {})
    for trial in trials(folder.name, model):
        key = trial.mutation.name, trial.level
        if trial.level not in LEVELS or not is_new(key):
            continue
        outcome = run(trial, pair)
        for other in list(pair.recordings)[1:]:  # of other inputs; they are large
            del pair.recordings[other]
        fields = ("is_caught", "is_right", "named")
        yield key, {field: getattr(outcome, field) for field in fields}


def members() -> list[zoo.ZooModel]:
    """Returns the models of the zoo in a random order, so that the first of them represent all."""
    found = sorted(zoo.zoo_models())
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


def compare_inputs(path: Path, kind: str, seed: int, mesh: dict[str, int]) -> dict[str, Any]:
    """Compares a checkpoint at all levels; returns the numbers of rows by verdict.

    Args:
        path: the checkpoint.
        kind: of the inputs, one of `KINDS`.
        seed: of the inputs.
        mesh: sizes of the mesh that the JAX model is on; empty: one device.
    """
    start = time.perf_counter()
    devices = make_mesh(**mesh) if mesh else None
    sharded = load_pretrained(path, dtype="float32", mesh=devices) if devices else None
    reference, model = open_both(path, model=sharded)
    options = InputOptions(random=kind == "random tokens", seed=seed)
    inputs = options.inputs(path, reference, model)
    with nullcontext() if devices is None else jax.set_mesh(devices):
        report = compare(reference, model, inputs, levels=levels_of(model))
    rows = [(level, row) for level, found in report.rows.items() for row in found]
    unclear = [(level, row) for level, row in rows if row.verdict == "cannot tell"]
    unclear.sort(key=lambda found: -found[1].highest_threshold)
    finite = [row.ratio for _, row in rows if row.verdict != "cannot tell"]
    return {
        "rows": len(rows),
        "differ": sum(row.verdict == "differs" for _, row in rows),
        "first": None if report.ok else report.first_divergence.path,
        "cannot_tell": dict(Counter(level for level, _ in unclear)),
        "worst": {
            f"{getattr(row, 'what', level)} of {row.path}": row.highest_threshold
            for level, row in unclear[:WORST]
        },
        "largest_ratio": max(finite),
        "seconds": round(time.perf_counter() - start),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1),
    }
