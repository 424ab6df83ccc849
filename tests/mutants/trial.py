"""A mutation put to the test on one family: what the comparison says of it."""

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
from jaxllm.interop.parity.report.rows import Judged
from jaxllm.models import with_scanned_layers
from jaxllm.models.decoder import Decoder

from . import MUTATIONS
from .features import can_pad_left
from .mutation import FORWARD, GENERATION, TRAINING, Mutation, left_padded
from .training import RECIPE

# Of the cases of tests/hf_cases.py, those that have every feature that a bug is of.
FAMILIES = (
    *("gpt2", "gpt_neox", "gpt_neox/serial-tied-half", "llama/llama3", "llama4_text", "gemma2"),
    *("mixtral", "olmo2", "qwen3", "qwen3_moe", "smollm3"),
)
# Training compiles a program for every bug, and is the same for all but for the gradients.
TRAINED = ("llama/llama3", "gpt2", "qwen3")


class Pair(NamedTuple):
    """A model of transformers, and ours with its weights, layer by layer; not to be changed."""

    reference: Any
    model: Decoder
    tokens_BT: np.ndarray  # windows and chunks end within them


@dataclasses.dataclass(frozen=True)
class Trial:
    """A mutation of a family's model, and the level that is to find it."""

    mutation: Mutation
    family: str
    level: str
    is_first: bool  # whether no level before finds it

    @property
    def levels(self) -> tuple[str, ...]:
        """Those that are run: this one is to be the first that finds the bug."""
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
        """Whether it takes a program of its own, and so seconds."""
        return self.level not in FORWARD

    def __str__(self) -> str:
        return f"{self.mutation.name}, {self.family}, {self.level}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the comparison found: nothing, if the bug escaped."""

    level: str = ""
    named: str = ""  # the step
    over_threshold: float = 0.0
    over_floor: float = math.inf  # infinite where nothing but equality will do
    hint: str = ""
    is_right: bool = False

    @property
    def is_caught(self) -> bool:
        return bool(self.level)


def build(family: str, folder: Path, seed: int = 0) -> Pair:
    reference = randomize(CASES[family].build(), seed)
    reference.save_pretrained(folder)
    model = with_scanned_layers(load_pretrained(folder, dtype="float32"), False)
    return Pair(reference, model, tokens_of(reference, batch_size=1, seed=seed + 1)[:, :128])


def compare_honest(pair: Pair) -> Judged | None:
    """What is said to differ of models that are alike, on tokens with padding."""
    reference, model, tokens_BT = pair
    inputs = left_padded(tokens_BT) if can_pad_left(model.config) else Inputs.of(tokens_BT)
    return compare(reference, model, inputs, levels=FORWARD).first_divergence


def trials(family: str, model: Decoder) -> Iterator[Trial]:
    """Every mutation that applies, by each of the levels that must find it."""
    for mutation in MUTATIONS:
        if not mutation.applies(model.config):
            continue
        for place, level in enumerate(mutation.signs(model.config)):
            trial = Trial(mutation, family, level, is_first=not place)
            if family in TRAINED or not trial.is_compiled:
                yield trial


def run(trial: Trial, pair: Pair) -> Outcome:
    reference, model, tokens_BT = pair
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
    """The step that a row is about; of a gradient, a moment or an update, which it is as well."""
    what = getattr(row, "what", None)
    return row.path if what is None else f"{row.path} {what}"
