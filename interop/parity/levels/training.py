"""Training levels: gradients, one optimizer step, and the loss curve of many steps."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.deviation import (
    Deviation,
    deviation,
    exceeds_noise,
    gradient_deviation,
    joint_norm,
    relative_l2,
    training_threshold,
    update_deviation,
)
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.parameter_names import decayed, imported, our_names
from jaxllm.interop.parity.execution.jax_train import loss_unit, train_model
from jaxllm.interop.parity.execution.noise_floor import EQUIVALENT_EVALUATIONS, perturbed_weights
from jaxllm.interop.parity.execution.recipe import Recipe, TrainingRecord
from jaxllm.interop.parity.execution.torch_train import train_reference
from jaxllm.interop.parity.recording.plain import plain
from jaxllm.interop.parity.recording.sample import elements
from jaxllm.interop.parity.report.rows import NATS, LossResult, TensorResult

from .level import Stage
from .sides import Comparison, JaxSide

Arrays = Mapping[str, np.ndarray]

# When clipping, PyTorch divides by the norm plus this; optax does not.
CLIP_EPS = 1e-6

# Updates are compared only where the gradient is this many times its noise; elsewhere the update
# is noise too.
ABOVE_NOISE = 1e3

# The deviation of a parameter that the reference lacks or has in another shape.
MISSING = Deviation(math.inf, 0.0)

PERTURBATION_SEEDS = (0, 1)  # seeds of training runs from perturbed weights
ELEMENTS = 1024  # kept in a pack of each gradient, moment and update


class Runs(NamedTuple):
    """Training runs on the same batches.

    Attributes:
        ours: the run of the JAX model.
        theirs: the run of the reference.
        others: runs of equivalent evaluations of the reference.
        perturbed: losses of the reference from slightly perturbed weights.
        unit: the unit of the losses.
    """

    ours: TrainingRecord
    theirs: TrainingRecord
    others: Sequence[TrainingRecord]
    perturbed: Sequence[Sequence[float]]
    unit: str = NATS


def train_both(comparison: Comparison) -> Runs:
    """Trains both sides from the same weights on the same batches; arrays have JAX names."""
    setup = training_setup(comparison)
    optimizer = comparison.optimizer or comparison.recipe.optimizer(comparison.model)
    ours = train_model(comparison.model, setup.batches, optimizer, setup.constant)
    (theirs, *others), perturbed = train_references(comparison, setup)
    return Runs(ours, theirs, others, perturbed, loss_unit(setup.batches[0]))


def record_training(comparison: Comparison) -> dict[str, Any]:
    """Trains the reference; returns the sampled runs, the batches and the recipe for a pack."""
    setup = training_setup(comparison)
    runs, perturbed = train_references(comparison, setup)
    return {
        "batches": [batch.arrays for batch in setup.batches],
        "constant": sorted(setup.constant),
        "recipe": dataclasses.asdict(comparison.recipe),
        "runs": [plain(sampled(run)) for run in runs],
        "moved": perturbed,
    }


def check_training(recorded: Mapping[str, Any], ours: JaxSide) -> Runs:
    """Trains the JAX model on the recorded batches with the recorded recipe."""
    batches = [Inputs.from_arrays(batch) for batch in recorded["batches"]]
    optimizer = Recipe(**recorded["recipe"]).optimizer(ours.model)
    run = train_model(ours.model, batches, optimizer, recorded["constant"])
    theirs, *others = (TrainingRecord(**kept) for kept in recorded["runs"])
    return Runs(sampled(run), theirs, others, recorded["moved"], loss_unit(batches[0]))


def sampled(run: TrainingRecord) -> TrainingRecord:
    """Returns the run with a sample of the elements of each of its arrays."""
    first = {what: elements(arrays, ELEMENTS) for what, arrays in run.first.items()}
    return dataclasses.replace(run, first=first)


class TrainingSetup(NamedTuple):
    """The batches of a training comparison, and the parameters that are not trained."""

    batches: list[Inputs]
    constant: set[str]  # JAX names of PyTorch buffers, which PyTorch does not train


def training_setup(comparison: Comparison) -> TrainingSetup:
    """Draws batches like the inputs, which are the first batch: one, or one per step of a curve."""
    reference, model, inputs = comparison.reference, comparison.model, comparison.inputs
    steps = comparison.recipe.steps if "curve" in comparison.levels else 1
    # PyTorch drops the gradient of the padding token in embedding lookups.
    unused = adapter_of(reference).padding_token(reference)
    later = (inputs.redrawn(model, seed) for seed in range(1, steps))
    batches = [batch.replace_token(unused, model) for batch in (inputs, *later)]
    names = our_names(comparison.rules)
    constant = {ours for name, _ in reference.named_buffers() for ours in names.get(name, ())}
    return TrainingSetup(batches, constant)


def train_references(
    comparison: Comparison, setup: TrainingSetup
) -> tuple[list[TrainingRecord], list[tuple[float, ...]]]:
    """Trains the reference, its equivalent evaluations, and copies with perturbed weights.

    Returns:
        The runs, that of the reference first; and the losses from perturbed weights, which are
        left out if there is only one step.
    """
    reference, rules, recipe = comparison.reference, comparison.rules, comparison.recipe
    decays = decayed(rules)

    def theirs() -> TrainingRecord:
        run = train_reference(reference, setup.batches, recipe, decays)
        first = {what: imported(rules, arrays) for what, arrays in run.first.items()}
        return dataclasses.replace(run, first=first)

    runs = [theirs()]
    for equivalent in EQUIVALENT_EVALUATIONS:
        with equivalent(reference):
            runs.append(theirs())
    perturbed = []
    for seed in PERTURBATION_SEEDS if len(setup.batches) > 1 else ():
        with perturbed_weights(reference, seed):
            perturbed.append(train_reference(reference, setup.batches, recipe, decays).losses)
    return runs, perturbed


def judge_gradients(runs: Runs) -> list[TensorResult]:
    """Judges the loss of the first batch and the gradient of every parameter."""
    ours, theirs, others, *_ = runs
    losses = [run.losses[0] for run in (ours, theirs, *others)]
    return [_judge_number("batch", "loss", losses), *_judge("gradient", runs, 0)]


def judge_step(runs: Runs) -> list[TensorResult]:
    """Judges the global gradient norm, and both moments and the update of every parameter."""
    ours, theirs, others, *_ = runs
    norm = _judge_number("gradient", "norm", [run.norm for run in (ours, theirs, *others)])
    return [norm, *_judge("m", runs, 1), *_judge("v", runs, 2), *_updates(runs)]


def _judge_number(path: str, what: str, found: Sequence[float]) -> TensorResult:
    """Judges a number, found by the model, the reference, and its equivalent evaluations."""
    ours, theirs, *others = found
    return _result(f"{path}.", what, deviation(ours, theirs, others))


def _judge(what: str, runs: Runs, power: int) -> Iterator[TensorResult]:
    """Judges arrays of every parameter: gradients (power 0), or moments m (1) and v (2).

    A moment is proportional to a power of the clipped gradient, which multiplies its noise.
    """
    gradient, clip = runs.theirs.first["gradient"], CLIP_EPS / runs.theirs.norm
    ours, theirs = runs.ours.first[what], runs.theirs.first[what]
    others = [run.first[what] for run in runs.others]
    whole = joint_norm(theirs.values())
    for name in ours:
        if name not in theirs:
            yield _result(name, what, MISSING)
            continue
        again = [other[name] for other in others]
        found = gradient_deviation(ours[name], theirs[name], again, whole)
        if power and found.relative_to == "own":
            noise = (
                relative_l2(run.first["gradient"][name], gradient[name]) for run in runs.others
            )
            found = found._replace(floor=max(found.floor, power * (max(noise) + clip)))
        yield _result(name, what, found)


def _updates(runs: Runs) -> Iterator[TensorResult]:
    """Judges the update of every parameter, at the elements whose gradient is above the noise."""
    ours, theirs, others, *_ = runs
    for name in ours.first["update"]:
        if name not in theirs.first["update"]:
            yield _result(name, "update", MISSING)
            continue
        noise = (run.first["gradient"][name] for run in others)
        counts = exceeds_noise(theirs.first["gradient"][name], noise, ABOVE_NOISE)
        own, update, *again = (run.first["update"][name][counts] for run in (ours, theirs, *others))
        before = theirs.first["parameter"][name][counts]
        found = update_deviation(own, update, again, before)
        yield _result(name, "update", found, compared=float(counts.mean()))


def _result(name: str, what: str, found: Deviation, compared: float = 1.0) -> TensorResult:
    """Builds the row of a parameter, such as `layers.7.mlp.up_proj.kernel`."""
    path, _, parameter = name.rpartition(".")
    return TensorResult(
        path=path,
        parameter=parameter,
        what=what,
        relative_l2=found.error,
        floor=found.floor,
        threshold=training_threshold(found.floor),
        relative_to=found.relative_to,
        compared=compared,
    )


def judge_curve(runs: Runs) -> list[LossResult]:
    """Judges the loss of every step. The noise floor of a step is at least that of earlier ones."""
    ours, theirs, others, perturbed, unit = runs
    again = [*(other.losses for other in others), *perturbed]
    rows, floor = [], 0.0
    for step, (mine, loss) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        floor = max(floor, *(relative_l2(losses[step], loss) for losses in again))
        limit = training_threshold(floor)
        rows.append(LossResult(f"step {step}", mine, loss, floor, limit, unit=unit))
    return rows


TRAINING = Stage(name="training", compare=train_both, record=record_training, check=check_training)
