"""Training stage: trains both sides on the same batches, and the reference in other precisions."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxllm.deviation import exceeds_noise
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.parameter_names import decayed, imported, our_names
from jaxllm.interop.parity.execution.jax_train import loss_unit, train_model
from jaxllm.interop.parity.execution.recipe import Recipe, TrainingRecord
from jaxllm.interop.parity.execution.simulated_rounding import DRAWS
from jaxllm.interop.parity.execution.torch_train import (
    FLOAT32,
    FLOAT64,
    Rounding,
    perturbed_weights,
    train_reference,
)
from jaxllm.interop.parity.numerics.significance import ErrorVector, error_of
from jaxllm.interop.parity.progress import announce
from jaxllm.interop.parity.recording.plain import plain
from jaxllm.interop.parity.recording.recording import Recording
from jaxllm.interop.parity.recording.sample import elements
from jaxllm.interop.parity.report.rows import NATS

from .level import Stage
from .routers import has_tie, record_routers
from .sides import Comparison, JaxSide

Kept = TypeVar("Kept")

# When clipping, PyTorch divides by the norm plus this; optax does not.
CLIP_EPS = 1e-6

# Length that rows are cut to for training. Mistakes in later positions show in activations.
TOKENS = 160

# Powers of the clipped gradient that an array of a step is proportional to.
POWERS = {"gradient": 0, "m": 1, "v": 2}

# Updates are compared only where the gradient is this many times its noise; elsewhere the update
# is noise too.
ABOVE_NOISE = 1e3

PERTURBATION_SEEDS = (0, 1)  # seeds of training runs from perturbed weights
ELEMENTS = 1024  # kept in a pack of each gradient, moment and update


class Draw(NamedTuple):
    """The errors of a training run with simulated rounding."""

    losses: tuple[float, ...]  # of all steps
    norm: float  # global norm of the first step's gradients
    errors: dict[str, dict[str, ErrorVector]]  # of the first step's arrays, by kind and parameter


class Runs(NamedTuple):
    """Training runs on the same batches.

    Attributes:
        ours: the run of the JAX model.
        theirs: the run of the reference.
        truth: the run of the reference in float64.
        draws: runs of the reference with simulated rounding.
        perturbed: losses of the reference from slightly perturbed weights.
        unit: the unit of the losses.
        clip_norm: the global norm that gradients are clipped to.
        has_tie: whether rounding sends a token to other experts on one side.
    """

    ours: TrainingRecord
    theirs: TrainingRecord
    truth: TrainingRecord
    draws: Sequence[Draw]
    perturbed: Sequence[Sequence[float]] = ()
    unit: str = NATS
    clip_norm: float = math.inf
    has_tie: bool = False


def train_both(comparison: Comparison) -> Runs:
    """Trains both sides from the same weights on the same batches; arrays have JAX names."""
    setup = training_setup(comparison)
    optimizer = comparison.optimizer or comparison.recipe.optimizer(comparison.model)
    announce("training: model")
    ours = train_model(comparison.model, setup.batches, optimizer, setup.constant)
    references = train_references(
        comparison,
        setup,
        lambda run, theirs, truth: draw_of(run, theirs, truth, comparison.recipe.clip_norm),
    )
    unit, clip_norm = loss_unit(setup.batches[0]), comparison.recipe.clip_norm
    routers = record_routers(comparison, setup.batches[0])
    return Runs(ours, *references, unit, clip_norm, has_tie(routers, comparison.unstacked))


def record_training(comparison: Comparison) -> dict[str, Any]:
    """Trains the reference; returns the sampled runs, the batches and the recipe for a pack."""
    setup = training_setup(comparison)
    theirs, truth, draws, perturbed = train_references(
        comparison, setup, lambda run, theirs, truth: sampled(run)
    )
    routers = record_routers(comparison, setup.batches[0])
    return {
        "batches": [batch.arrays for batch in setup.batches],
        "constant": sorted(setup.constant),
        "recipe": dataclasses.asdict(comparison.recipe),
        "truth": plain(sampled(truth)),
        "runs": [plain(sampled(run)) for run in (theirs, *draws)],
        "moved": perturbed,
        "routers": routers and routers.to_pack(),
    }


def check_training(recorded: Mapping[str, Any], ours: JaxSide) -> Runs:
    """Trains the JAX model on the recorded batches with the recorded recipe."""
    batches = [Inputs.from_arrays(batch) for batch in recorded["batches"]]
    recipe = Recipe(**recorded["recipe"])
    optimizer = recipe.optimizer(ours.model)
    announce("training: model")
    run = train_model(ours.model, batches, optimizer, recorded["constant"])
    theirs, *others = (TrainingRecord(**kept) for kept in recorded["runs"])
    truth = TrainingRecord(**recorded["truth"])
    draws = [draw_of(other, theirs, truth, recipe.clip_norm) for other in others]
    perturbed, unit = recorded["moved"], loss_unit(batches[0])
    routers = recorded["routers"] and Recording.from_pack(recorded["routers"])
    is_tie = has_tie(routers, ours.unstacked)
    return Runs(sampled(run), theirs, truth, draws, perturbed, unit, recipe.clip_norm, is_tie)


def sampled(run: TrainingRecord) -> TrainingRecord:
    """Returns the run with a sample of the elements of each of its arrays."""
    first = {what: elements(arrays, ELEMENTS) for what, arrays in run.first.items()}
    return dataclasses.replace(run, first=first)


def draw_of(
    run: TrainingRecord, theirs: TrainingRecord, truth: TrainingRecord, clip_norm: float = math.inf
) -> Draw:
    """Returns the errors of a run, so that its arrays, as large as the model, can be freed.

    Args:
        run: the run with simulated rounding.
        theirs: the reference.
        truth: the reference in float64.
        clip_norm: the global norm that gradients are clipped to.
    """
    errors = {}
    for what, power in POWERS.items():
        scale, true_scale = (
            unclipped(one.norm + CLIP_EPS, power, clip_norm) for one in (run, truth)
        )
        errors[what] = {
            name: error_of(scale * array, true_scale * truth.first[what][name])
            for name, array in run.first[what].items()
        }
    errors["update"] = {}
    for name, update in run.first["update"].items():
        counts = compared_elements(name, theirs, truth)
        errors["update"][name] = error_of(update[counts], truth.first["update"][name][counts])
    return Draw(run.losses, run.norm, errors)


def unclipped(norm: float, power: int, clip_norm: float) -> float:
    """Returns the factor that undoes clipping in a moment.

    The norm has its own row. In float32 it is inexact for large models, and would move all moments
    together.

    Args:
        norm: the global norm, to which PyTorch adds `CLIP_EPS`.
        power: the power of the clipped gradient that the moment is proportional to.
        clip_norm: the global norm that gradients are clipped to.
    """
    return max(1.0, norm / clip_norm) ** power


def compared_elements(name: str, theirs: TrainingRecord, truth: TrainingRecord) -> np.ndarray:
    """Returns a mask of the elements of a parameter whose gradient is far above its noise.

    The update of any other element is noise: Adam divides each gradient by its size.
    """
    gradient = truth.first["gradient"][name]
    return exceeds_noise(gradient, [theirs.first["gradient"][name]], ABOVE_NOISE)


class TrainingSetup(NamedTuple):
    """The batches of a training comparison, and the parameters that are not trained."""

    batches: list[Inputs]
    constant: set[str]  # JAX names of PyTorch buffers, which PyTorch does not train


def training_setup(comparison: Comparison) -> TrainingSetup:
    """Draws batches like the inputs, of which the first is the beginning; one per step."""
    reference, model = comparison.reference, comparison.model
    inputs = comparison.inputs.shortened(TOKENS)
    steps = comparison.recipe.steps if "curve" in comparison.levels else 1
    # PyTorch drops the gradient of the padding token in embedding lookups.
    unused = adapter_of(reference).padding_token(reference)
    later = (inputs.redrawn(model, seed) for seed in range(1, steps))
    batches = [batch.replace_token(unused, model) for batch in (inputs, *later)]
    names = our_names(comparison.rules)
    constant = {ours for name, _ in reference.named_buffers() for ours in names.get(name, ())}
    return TrainingSetup(batches, constant)


def train_references(
    comparison: Comparison,
    setup: TrainingSetup,
    keep: Callable[[TrainingRecord, TrainingRecord, TrainingRecord], Kept],
) -> tuple[TrainingRecord, TrainingRecord, list[Kept], list[tuple[float, ...]]]:
    """Trains the reference in float32, in float64, with simulated rounding and perturbed weights.

    Args:
        comparison: the two sides.
        setup: the batches.
        keep: returns what is kept of a run with simulated rounding, as `draw_of` does.

    Returns:
        The runs in this order. Perturbed weights are left out if there is only one step, and only
        their losses are returned.
    """
    reference, rules, recipe = comparison.reference, comparison.rules, comparison.recipe
    decays = decayed(rules)

    def train(rounding: Rounding, how: str = "") -> TrainingRecord:
        announce(f"training: reference{how}")
        run = train_reference(reference, setup.batches, recipe, decays, rounding)
        first = {what: imported(rules, arrays) for what, arrays in run.first.items()}
        return dataclasses.replace(run, first=first)

    theirs, truth = train(FLOAT32), train(FLOAT64, " in float64")
    draws = []
    for seed in range(DRAWS):
        run = train(Rounding(seed=seed), f" with simulated rounding, {seed + 1} of {DRAWS}")
        draws.append(keep(run, theirs, truth))
        del run  # its arrays are as large as the model: freed before the next run
    perturbed = []
    for seed in PERTURBATION_SEEDS if len(setup.batches) > 1 else ():
        announce(f"training: reference with perturbed weights, seed {seed}")
        with perturbed_weights(reference, seed):
            perturbed.append(train_reference(reference, setup.batches, recipe, decays).losses)
    return theirs, truth, draws, perturbed


TRAINING = Stage(
    name="training",
    compare=train_both,
    record=record_training,
    check=check_training,
    runs=lambda levels: 3 + DRAWS + ("curve" in levels) * len(PERTURBATION_SEEDS),
)
