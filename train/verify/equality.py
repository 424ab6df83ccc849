"""Layout equality: compares a training step in every variant with the step of a single device.

The tolerance is measured: equivalent computations of the single-device step show how much
rounding alone changes the result.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxllm.config import NumericsConfig, with_fields
from jaxllm.deviation import (
    deviation,
    exceeds_noise,
    gradient_deviation,
    joint_norm,
    update_deviation,
)
from jaxllm.models import Model
from jaxllm.params import initialize, split
from jaxllm.train.checkpoint_arrays import FIRST_MOMENT, SECOND_MOMENT
from jaxllm.train.config import ConfigError, TrainConfig
from jaxllm.train.mesh import make_mesh
from jaxllm.train.setup import make_batches

from .noise import equivalent_steps
from .outcomes import Difference, Equality, Outcome
from .variants import (
    Arrays,
    Batch,
    Program,
    Step,
    Variant,
    by_name,
    find_experts,
    variants,
)

log = logging.getLogger("jaxllm")

# Updates are compared only where the gradient is at least this many times its noise: Adam divides
# by the gradient's own size, so elsewhere the update is noise.
ABOVE_NOISE = 1e4
BATCH_AXES = ("data", "fsdp")  # their sizes must divide the rows of every microbatch


def compare_variants(
    config: TrainConfig, model: Model | None = None, chosen: Sequence[Variant] | None = None
) -> Equality:
    """Compares a training step of `config` in each variant with a single device, in float32.

    Dropout is off, since every microbatch has its own dropout key. With gradient accumulation,
    the experts' capacity limit and load-balancing loss are off too, since both are computed per
    microbatch.

    Args:
        config: the run. Its first batch is used, with some of the targets masked out.
        model: the weights that `config.init_from` names; by default they are initialized.
        chosen: the variants; by default all that the devices allow.

    Raises:
        ConfigError: a batch is not divisible by the devices, the data do not fill one, or there
            are several processes.
    """
    if model is None:
        model = initialize(config.model, make_mesh(devices=jax.devices()), config.seed)
    exact = with_fields(model.config, numerics=NumericsConfig(), dropout=0.0)
    config = dataclasses.replace(config, model=exact, init_from=None, dtype=None, remat=None)
    if chosen is None:
        chosen = variants(config, jax.device_count())
    _check(config, chosen)
    weights, batch = _vary_constants(model, config.seed), _thinned_batch(config, model)
    judges: dict[bool, Judge] = {}  # by whether the experts depend on the microbatch
    outcomes = []
    for variant in chosen:
        is_split = variant.accumulate > 1 and find_experts(model.config) is not None
        if is_split not in judges:
            comparable = _without_token_interaction(config) if is_split else config
            judges[is_split] = Judge(comparable, weights, batch)
        outcomes.append(judges[is_split].outcome(variant))
        log.info("%s  %s", "equal" if outcomes[-1].ok else "WRONG", variant.name)
    return Equality(tuple(outcomes))


def _check(config: TrainConfig, chosen: Sequence[Variant]) -> None:
    """Raises ConfigError if the comparison cannot run."""
    if jax.process_count() > 1:
        raise ConfigError(
            f"layouts are compared in a single process, but there are {jax.process_count()}"
        )
    problems = []
    for variant in chosen:
        rows = config.batch_size // variant.accumulate
        ways = math.prod(size for axis, size in variant.mesh if axis in BATCH_AXES)
        if rows % ways:
            problems.append(
                f"{variant.name}: batch_size / accumulate = {rows} sequences is not divisible by "
                f"{' x '.join(BATCH_AXES)} = {ways} devices"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _vary_constants(model: Model, seed: int) -> Arrays:
    """Returns the weights in float32, with noise added to every constant parameter."""
    rng = np.random.default_rng(seed)
    weights = {name: x.astype(np.float32) for name, x in by_name(split(model)[1]).items()}
    for name, x in weights.items():
        if x.size > 1 and np.all(x == x.flat[0]):
            # Norms start as ones and biases as zeros; swapping two of them would go unnoticed.
            weights[name] = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    return weights


def _thinned_batch(config: TrainConfig, model: Model) -> Batch:
    """Returns the first batch, masked so that rows keep from none to all of their targets."""
    batch = next(make_batches(config, model, make_mesh(devices=jax.devices())).train(0))
    mask = batch["mask"]
    fraction_B = np.linspace(0, 1, len(mask)).reshape(-1, *(1,) * (mask.ndim - 1))
    counts = np.random.default_rng(config.seed).random(mask.shape) < fraction_B
    return {**batch, "mask": mask & counts}


def _without_token_interaction(config: TrainConfig) -> TrainConfig:
    """Returns the run with experts that no token can influence for others of its microbatch."""
    assert config.model is not None, "compare_variants fills in the model"
    experts = find_experts(config.model)
    assert experts is not None, "called only for models with experts"
    # Raised rather than removed: without a capacity there would be no overflow expert.
    unlimited = experts.capacity and config.batch_size * config.seq_len * experts.top_k
    free = dataclasses.replace(experts, aux_weight=0.0, capacity=unlimited)
    return dataclasses.replace(config, model=with_fields(config.model, experts=free))


class Judge:
    """Compares variants with the single-device step, whose noise floor it measures once.

    Args:
        config: the run, with its model filled in.
        weights: parameters by name, layers unstacked.
        batch: the batch of the step.
    """

    def __init__(self, config: TrainConfig, weights: Arrays, batch: Batch):
        assert config.model is not None, "compare_variants fills in the model"
        self._config, self._weights, self._batch = config, weights, batch
        single_device = Program(config, Variant())
        self._reference = single_device(weights, batch)
        self._equivalents = list(
            equivalent_steps(single_device, config.model, weights, batch, config.seed + 1)
        )

    def outcome(self, variant: Variant) -> Outcome:
        """Runs the step in a variant and compares it with the single-device step."""
        step = Program(self._config, variant)(self._weights, self._batch)
        return Outcome(variant.name, tuple(differences(step, self._reference, self._equivalents)))


def differences(step: Step, alone: Step, others: Sequence[Step]) -> Iterator[Difference]:
    """Yields the differences from the single-device step: loss, norm, then each parameter's.

    Args:
        step: the step to judge.
        alone: the step of a single device.
        others: equivalent single-device steps; their spread is the noise floor.
    """
    for what, field in (("loss", "loss"), ("norm of all gradients", "grad_norm")):
        actual, expected, *noise = (getattr(s, field) for s in (step, alone, *others))
        yield Difference(what, "", *deviation(actual, expected, noise))
    for what in (FIRST_MOMENT, SECOND_MOMENT):
        field = what.replace(" ", "_")
        actual, expected, *noise = (getattr(s, field) for s in (step, alone, *others))
        total_norm = joint_norm(expected.values())
        for name, array in expected.items():
            equivalents = [arrays[name] for arrays in noise]
            found = gradient_deviation(actual[name], array, equivalents, total_norm)
            yield Difference(what, name, *found)
    for name in alone.update:
        yield _update_difference(name, step, alone, others)


def _update_difference(name: str, step: Step, alone: Step, others: Sequence[Step]) -> Difference:
    """Compares a parameter's update at the elements whose gradient is well above its noise."""
    noise = (s.first_moment[name] for s in others)
    counts = exceeds_noise(alone.first_moment[name], noise, ABOVE_NOISE)
    actual, expected, *equivalents = (s.update[name][counts] for s in (step, alone, *others))
    found = update_deviation(actual, expected, equivalents, alone.before[name][counts])
    return Difference("update", name, *found)
