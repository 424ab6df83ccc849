"""Measures of what parity sees: the weakest bugs, planted bugs, correct models on many inputs."""

import dataclasses
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import zoo
from mutants import MUTATIONS
from mutants.trial import Pair, run, trials
from weak_bugs import STRENGTHS, WeakBug

from jaxllm.interop import load_pretrained
from jaxllm.interop.loading.model_arrays import open_model_arrays
from jaxllm.interop.parity import Report, compare
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.both_sides import open_both
from jaxllm.interop.parity.checkpoint import InputOptions
from jaxllm.interop.parity.comparison import DRAWS_TO_DECIDE
from jaxllm.interop.parity.levels.activations.forward import judge, record_forward
from jaxllm.interop.parity.levels.sides import Comparison
from jaxllm.interop.parity.levels.table import levels_of
from jaxllm.interop.parity.recording.recording import Recording
from jaxllm.models import with_scanned_layers
from jaxllm.train import make_mesh

LEVELS = ("layers", "logits")
KINDS = ("text", "random tokens")
WORST = 5  # rows kept of those that cannot tell


@dataclasses.dataclass(frozen=True)
class Subject:
    """A correct model, and what its reference computes."""

    name: str
    comparison: Comparison

    @cached_property
    def recording(self) -> Recording:
        """The activations of the reference, and their rounding errors."""
        return record_forward(self.comparison)

    @cached_property
    def recording_to_decide(self) -> Recording:
        """The same with so many draws of rounding errors that nothing is suspect."""
        return record_forward(dataclasses.replace(self.comparison, draws=DRAWS_TO_DECIDE))


def subject(name: str, folder: Path) -> Subject:
    """Runs the reference of a checkpoint."""
    reference, model = open_both(folder)
    inputs = InputOptions().inputs(folder, reference, model)
    comparison = Comparison(reference=reference, model=model, inputs=inputs, levels=LEVELS)
    return Subject(name, comparison)


def weakest(one: Subject, bug: WeakBug) -> str:
    """Returns the lowest strength that is noticed, found by bisection."""
    if not bug.applies(one.comparison.model.config):
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
        model = bug.weaken(one.comparison.unstacked, strength)
        forward = judge(one.recording, model, LEVELS)
        if all(tap.ok for tap in forward.taps) and any(tap.is_suspect for tap in forward.taps):
            forward = judge(one.recording_to_decide, model, LEVELS)
    return not all(tap.ok for tap in forward.taps)


def planted(
    folder: Path, is_new: Callable[[tuple[str, str]], bool]
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yields the bugs of docs/mutations.md at every level that must show them, and the outcome."""
    reference, model = open_both(folder)
    model = with_scanned_layers(model, False)
    tokens_BT = InputOptions(batch_size=1).inputs(folder, reference, model).target
    pair = Pair(reference, model, tokens_BT, {})
    for trial in trials(folder.name, model, is_trained=True):
        key = trial.mutation.name, trial.level
        if not is_new(key):
            continue
        has_own_inputs = trial.mutation.inputs(tokens_BT).digest != Inputs.of(tokens_BT).digest
        # Recordings are large: only those that other trials need are kept.
        outcome = run(trial, pair._replace(recordings={}) if has_own_inputs else pair)
        fields = ("is_caught", "is_right", "named")
        yield key, {field: getattr(outcome, field) for field in fields}


def absent(folder: Path) -> list[str]:
    """Returns the bugs of docs/mutations.md that have no place in a checkpoint."""
    config = open_model_arrays(folder).config
    applying = {mutation.name for mutation in MUTATIONS if mutation.applies(config)}
    return list(dict.fromkeys(one.name for one in MUTATIONS if one.name not in applying))


def members() -> list[zoo.ZooModel]:
    """Returns the models of the zoo in a random order, so that the first of them represent all."""
    found = sorted(zoo.zoo_models())
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


class Placed:
    """A checkpoint in PyTorch, and in JAX on one device and on meshes.

    Args:
        path: the checkpoint.
        meshes: the sizes of each mesh by axis; empty: one device.
    """

    def __init__(self, path: Path, meshes: Mapping[str, dict[str, int]]):
        self._path = path
        self._reference, alone = open_both(path)
        self._models = dict.fromkeys(meshes, (alone, None))
        for name, sizes in meshes.items():
            if sizes:
                mesh = make_mesh(**sizes)
                self._models[name] = load_pretrained(path, dtype="float32", mesh=mesh), mesh

    def compare(self, kind: str, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Compares all levels on inputs; yields each mesh with the numbers of rows by verdict.

        The reference runs once for all.

        Args:
            kind: of the inputs, one of `KINDS`.
            seed: of the inputs.
        """
        recordings: dict[str, Any] = {}
        options = InputOptions(random=kind == "random tokens", seed=seed)
        for name, (model, mesh) in self._models.items():
            start = time.perf_counter()
            inputs = options.inputs(self._path, self._reference, model)
            with nullcontext() if mesh is None else jax.set_mesh(mesh):
                report = compare(
                    *(self._reference, model, inputs),
                    levels=levels_of(model),
                    recordings=recordings,
                )
            yield name, {**_counts(report), "seconds": round(time.perf_counter() - start)}


def _counts(report: Report) -> dict[str, Any]:
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
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1),
    }
