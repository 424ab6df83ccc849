"""Training stage: trains both sides on the same batches, and the reference in other precisions."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxllm.errors import UserError
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.parameter_names import decayed, our_names
from jaxllm.interop.parity.alignment.references.peft_models import (
    Factors,
    base_name,
    is_factor,
    is_trained,
)
from jaxllm.interop.parity.execution.jax_train import check_moments, loss_unit, train_model
from jaxllm.interop.parity.execution.recipe import Recipe, TrainingRecord
from jaxllm.interop.parity.execution.torch_train import (
    FLOAT32,
    FLOAT64,
    Rounding,
    perturbed_weights,
    train_reference,
)
from jaxllm.interop.parity.memory.malloc import return_scarce_memory
from jaxllm.interop.parity.progress import announce
from jaxllm.interop.parity.recording.plain import plain
from jaxllm.interop.parity.recording.recording import Recording
from jaxllm.interop.parity.recording.sample import elements
from jaxllm.interop.parity.report.rows import NATS
from jaxllm.params import named_parameters

from .activations.routers import has_tie, record_routers
from .level import Stage
from .sides import Comparison, JaxSide
from .training_errors import RunErrors, Truth, errors_of, truth_of

# Length that rows are cut to for training. Mistakes in later positions show in activations.
TOKENS = 160

# Length of later batches' rows. They show how steps follow each other, and are most of the time.
LATER_TOKENS = 32

PERTURBATION_SEEDS = (0, 1)  # seeds of training runs from perturbed weights
ELEMENTS = 1024  # kept in a pack of each gradient, moment and update


Measured = tuple[Truth, RunErrors, list[RunErrors]]  # of the reference, and of the draws


class Runs(NamedTuple):
    """Training runs on the same batches.

    Attributes:
        ours: the run of the JAX model.
        truth: the run of the reference in float64.
        theirs: the run of the reference.
        draws: runs of the reference with simulated rounding.
        perturbed: losses of the reference from slightly perturbed weights.
        unit: the unit of the losses.
        has_tie: whether rounding sends a token to other experts on one side.
        later: what the batches after the first are, in words; "": there are none.
    """

    ours: RunErrors
    truth: Truth
    theirs: RunErrors
    draws: Sequence[RunErrors]
    perturbed: Sequence[Sequence[float]] = ()
    unit: str = NATS
    has_tie: bool = False
    later: str = ""


def train_both(comparison: Comparison) -> Runs:
    """Trains both sides from the same weights on the same batches; arrays have JAX names."""
    optimizer = comparison.optimizer or comparison.recipe.optimizer(comparison.model)
    check_moments(optimizer, comparison.model)
    setup = training_setup(comparison)
    measured, perturbed = comparison.of_reference(
        partial(_measured_reference, comparison, setup),
        *("training", [batch.digest for batch in setup.batches], comparison.recipe),
        *(sorted(setup.constant), comparison.rules),
    )
    announce("training: model")
    run = train_model(comparison.model, setup.batches, optimizer, setup.constant)
    ours = errors_of(run, measured[0], clip_eps=0.0)
    del run
    routers = record_routers(comparison, setup.batches[0])
    unit, is_tie = loss_unit(setup.batches[0]), has_tie(routers, comparison.unstacked)
    return Runs(ours, *measured, perturbed, unit, is_tie, setup.later)


def record_training(comparison: Comparison) -> dict[str, Any]:
    """Trains the reference; returns the sampled runs, the batches and the recipe for a pack."""
    setup = training_setup(comparison)
    truth, *runs = map(sampled, reference_runs(comparison, setup))
    perturbed = perturbed_losses(comparison, setup)
    routers = record_routers(comparison, setup.batches[0])
    return {
        "batches": [batch.arrays for batch in setup.batches],
        "constant": sorted(setup.constant),
        "recipe": dataclasses.asdict(comparison.recipe),
        "truth": plain(truth),
        "runs": [plain(run) for run in runs],
        "later": setup.later,
        "moved": perturbed,
        "routers": routers and routers.to_pack(),
    }


def check_training(recorded: Mapping[str, Any], ours: JaxSide) -> Runs:
    """Trains the JAX model on the recorded batches with the recorded recipe."""
    batches = [Inputs.from_arrays(batch) for batch in recorded["batches"]]
    recipe = Recipe(**recorded["recipe"])
    announce("training: model")
    run = train_model(ours.model, batches, recipe.optimizer(ours.model), recorded["constant"])
    references = (TrainingRecord(**kept) for kept in (recorded["truth"], *recorded["runs"]))
    measured = _measured(references, recipe)
    routers = recorded["routers"] and Recording.from_pack(recorded["routers"])
    errors = errors_of(sampled(run), measured[0], clip_eps=0.0)
    unit, is_tie = loss_unit(batches[0]), has_tie(routers, ours.unstacked)
    later = recorded.get("later", "")  # packs of earlier versions do not say
    return Runs(errors, *measured, recorded["moved"], unit, is_tie, later)


def sampled(run: TrainingRecord) -> TrainingRecord:
    """Returns the run with a sample of the elements of each of its arrays."""
    first = {what: elements(arrays, ELEMENTS) for what, arrays in run.first.items()}
    return dataclasses.replace(run, first=first)


def _measured_reference(
    comparison: Comparison, setup: "TrainingSetup"
) -> tuple[Measured, list[tuple[float, ...]]]:
    """Returns what the reference's runs say of rounding, and its losses from perturbed weights."""
    measured = _measured(reference_runs(comparison, setup), comparison.recipe)
    return measured, perturbed_losses(comparison, setup)


def _measured(runs: Iterator[TrainingRecord], recipe: Recipe) -> Measured:
    """Returns the truth, and the errors of the reference and of the draws.

    Args:
        runs: of the reference: in float64, in float32, and with simulated rounding.
        recipe: the training recipe.
    """
    wide, theirs = next(runs), next(runs)
    truth = truth_of(wide, theirs, recipe)
    errors = errors_of(theirs, truth)
    del wide, theirs
    # `map` frees each run, as large as the model, before the next one begins.
    return truth, errors, list(map(partial(errors_of, truth=truth), runs))


class TrainingSetup(NamedTuple):
    """The batches of a training comparison, and the parameters that are not trained."""

    batches: list[Inputs]
    constant: set[str]  # JAX names of PyTorch buffers, which PyTorch does not train
    later: str = ""  # what the batches after the first are, in words; "": there are none


def training_setup(comparison: Comparison) -> TrainingSetup:
    """Draws a batch per step like the inputs: the first is their beginning, later ones shorter."""
    reference, model = comparison.reference, comparison.model
    inputs = comparison.inputs.shortened(TOKENS)
    steps = comparison.recipe.steps if "curve" in comparison.levels else 1
    # PyTorch drops the gradient of the padding token in embedding lookups.
    unused = adapter_of(reference).padding_token(reference)
    later = (inputs.redrawn(model, seed).shortened(LATER_TOKENS) for seed in range(1, steps))
    batches = [batch.replace_token(unused, model) for batch in (inputs, *later)]
    names = our_names(comparison.rules)
    constant = {ours for name, _ in reference.named_buffers() for ours in names.get(name, ())}
    if comparison.factors is not None:
        constant |= _frozen(comparison, comparison.factors, names)
    return TrainingSetup(batches, constant, _later(inputs) if steps > 1 else "")


def _later(inputs: Inputs) -> str:
    """Returns what later batches of these inputs are, in words."""
    if inputs.further is not None:
        return inputs.further.words
    return "random tokens" if inputs.are_tokens else "random vectors"


def _frozen(
    comparison: Comparison, factors: Factors, names: Mapping[str, Sequence[str]]
) -> set[str]:
    """Returns the names of the parameters that an adapter leaves as they are.

    Raises UserError if the two sides train other factors.
    """
    if factors.shared:
        raise UserError(
            f"the projections in {', '.join(factors.shared)} share a factor in PEFT, and have one "
            "each in jaxllm: the levels weights, config, logits, layers and generate compare them"
        )
    reference = comparison.reference
    found = [name for name, _ in reference.named_parameters() if is_trained(reference, name)]
    full = {ours for name in found for ours in names.get(base_name(name) or "", ())}
    return {
        name
        for name in named_parameters(comparison.unstacked)
        if not is_factor(name) and name not in full
    }


def reference_runs(comparison: Comparison, setup: TrainingSetup) -> Iterator[TrainingRecord]:
    """Trains the reference in float64, in float32, and with simulated rounding, as draws."""
    decays = decayed(comparison.rules, comparison.model)
    roundings = {"in float64": FLOAT64, "in float32": FLOAT32}
    draws = comparison.draws
    for seed in range(draws):
        roundings[f"with simulated rounding, {seed + 1} of {draws}"] = Rounding(seed=seed)
    for how, rounding in roundings.items():
        announce(f"training: reference {how}")
        return_scarce_memory()
        # Not bound to a name, which would keep it until the end of the next run.
        yield with_jax_names(
            train_reference(
                comparison.reference, setup.batches, comparison.recipe, decays, rounding
            ),
            comparison,
        )


def with_jax_names(run: TrainingRecord, comparison: Comparison) -> TrainingRecord:
    """Returns a run of the reference with the names and layouts of the JAX model."""
    first = {what: comparison.in_jax_names(arrays) for what, arrays in run.first.items()}
    return dataclasses.replace(run, first=first)


def perturbed_losses(comparison: Comparison, setup: TrainingSetup) -> list[tuple[float, ...]]:
    """Trains the reference from perturbed weights, if there are several steps."""
    reference, recipe = comparison.reference, comparison.recipe
    decays = decayed(comparison.rules, comparison.model)
    found = []
    for seed in PERTURBATION_SEEDS if len(setup.batches) > 1 else ():
        announce(f"training: reference with perturbed weights, seed {seed}")
        with perturbed_weights(reference, seed):
            found.append(train_reference(reference, setup.batches, recipe, decays).losses)
    return found


TRAINING = Stage(
    name="training",
    compare=train_both,
    record=record_training,
    check=check_training,
    details=lambda runs: {"later_batches": runs.later},
    runs=lambda levels, draws: 3 + draws + ("curve" in levels) * len(PERTURBATION_SEEDS),
)
