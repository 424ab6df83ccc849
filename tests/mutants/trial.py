"""Trials: runs a mutation on a model of one family and judges what parity reports."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hf_cases import CASES, randomize, tokens_of

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import Report, compare
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.report.judged import Judged
from jaxllm.models import with_scanned_layers
from jaxllm.models.decoder import Decoder

from . import MUTATIONS
from .features import can_pad_left
from .mutation import FORWARD, GENERATION, TRAINING, Mutation, left_padded
from .training import RECIPE

# Cases of tests/hf_cases.py that together have every feature that a bug needs.
FAMILIES = (
    *("gpt2", "gpt_neox", "gpt_neox/serial-tied-half", "llama/llama3", "llama4_text", "gemma2"),
    *("mixtral", "olmo2", "qwen3", "qwen3_moe", "smollm3"),
)
# Families with training mutations. Training compiles a program for every bug, and only the
# gradients depend on the family.
TRAINED = ("llama/llama3", "gpt2", "qwen3")


class Pair(NamedTuple):
    """A model of transformers and the unstacked JAX model of its weights. Not to be changed."""

    reference: Any
    model: Decoder
    tokens_BT: np.ndarray  # long enough for windows and chunks to end
    recordings: dict[str, Any]  # of the reference, for all trials


@dataclasses.dataclass(frozen=True)
class Trial:
    """A mutation of a family's model, and the level that must find it."""

    mutation: Mutation
    family: str
    level: str
    is_first: bool  # whether this is the first level that must find it

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels to run: the first one to find the bug must be `level`."""
        if self.level in TRAINING:
            return TRAINING[: TRAINING.index(self.level) + 1]
        if self.level in GENERATION:
            return GENERATION
        is_computed = self.level not in FORWARD[:2]
        if is_computed and self.is_first:
            return FORWARD
        return FORWARD[2:] if is_computed else FORWARD[:2]

    @property
    def is_compiled(self) -> bool:
        """Whether the trial compiles a program of its own, which takes seconds."""
        return self.level not in FORWARD

    def __str__(self) -> str:
        return f"{self.mutation.name}, {self.family}, {self.level}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The findings of a comparison; all fields are empty if it missed the bug."""

    level: str = ""
    named: str = ""  # the path that the report names
    over_threshold: float = 0.0
    over_floor: float = math.inf  # infinite where equality is required
    hint: str = ""
    is_right: bool = False

    @property
    def is_caught(self) -> bool:
        return bool(self.level)


def build(family: str, folder: Path, seed: int = 0) -> Pair:
    """Builds a model of transformers with random weights, and converts it by way of `folder`."""
    reference = randomize(CASES[family].build(), seed)
    reference.save_pretrained(folder)
    model = with_scanned_layers(load_pretrained(folder, dtype="float32"), False)
    tokens_BT = tokens_of(reference, batch_size=1, seed=seed + 1)[:, :128]
    return Pair(reference, model, tokens_BT, {})


def compare_honest(pair: Pair) -> Judged | None:
    """Compares a correct model on padded tokens; returns the false alarm, if there is one."""
    reference, model, tokens_BT, _ = pair
    inputs = left_padded(tokens_BT) if can_pad_left(model.config) else Inputs.of(tokens_BT)
    return compare(reference, model, inputs, levels=FORWARD).first_divergence


def trials(family: str, model: Decoder, *, is_trained: bool | None = None) -> Iterator[Trial]:
    """Yields a trial for every mutation that applies and every level that must find it.

    Args:
        family: the name of the model.
        model: the correct model.
        is_trained: whether to try training and generation too; by default for `TRAINED`.
    """
    if is_trained is None:
        is_trained = family in TRAINED
    for mutation in MUTATIONS:
        if not mutation.applies(model.config):
            continue
        for place, level in enumerate(mutation.signs(model.config)):
            trial = Trial(mutation, family, level, is_first=not place)
            if is_trained or not trial.is_compiled:
                yield trial


def run(trial: Trial, pair: Pair) -> Outcome:
    """Compares the mutated model with the reference, and judges what the comparison reports."""
    reference, model, tokens_BT, recordings = pair
    mutation = trial.mutation
    broken = mutation.break_model(model)
    if trial.level in TRAINING:
        broken, tokens_BT = with_scanned_layers(broken, True), tokens_BT[:, :24]
    with mutation.patch(model.config):
        report = compare(
            reference,
            broken,
            mutation.inputs(tokens_BT),
            levels=trial.levels,
            recipe=RECIPE,
            recordings=recordings,
            **mutation.options(broken),
        )
    row = report.first_divergence
    if row is None:
        return Outcome()
    level, named = level_of(row, report), name_of(row)
    return Outcome(
        level=level,
        named=named,
        over_threshold=row.ratio,
        over_floor=row.measured / row.floor if row.floor else math.inf,
        hint=row.hint or "",
        is_right=level == trial.level and mutation.is_named(model.config, level, named),
    )


def level_of(row: Judged, report: Report) -> str:
    return next(level for level, rows in report.rows.items() if any(other is row for other in rows))


def name_of(row: Judged) -> str:
    """Returns the path of a row, followed by the quantity for gradients, moments and updates."""
    what = getattr(row, "what", None)
    return row.path if what is None else f"{row.path} {what}"
