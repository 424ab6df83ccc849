"""Layout equality: compares a training step in every variant with the step of a single device.

The tolerance is measured: equivalent evaluations of the single-device step show how much rounding
alone changes the result (`jaxllm.numerics.significance`).
"""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import numpy as np

from jaxllm.config import NumericsConfig, with_fields
from jaxllm.models import Model
from jaxllm.numerics.judgement import ENOUGH
from jaxllm.numerics.significance import FALSE_ALARMS
from jaxllm.params import initialize, split
from jaxllm.train.config import ConfigError, TrainConfig
from jaxllm.train.mesh import make_mesh
from jaxllm.train.setup import check_rows, make_batches

from .expected_step import ExpectedStep
from .noise import EQUIVALENTS, equivalent_steps
from .outcomes import Equality, Outcome
from .variants import (
    Arrays,
    Batch,
    Program,
    Variant,
    by_name,
    find_experts,
    variants,
)

log = logging.getLogger("jaxllm")


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
    config = dataclasses.replace(
        config,
        model=exact,
        optimizer=dataclasses.replace(config.optimizer, reduce_dtype=None),
        mesh=dataclasses.replace(config.mesh, sequence_parallel=False),
        **dict.fromkeys(("init_from", "dtype", "remat", "attention_kernel")),
    )
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
            judges[is_split] = Judge(comparable, weights, batch, FALSE_ALARMS / len(chosen))
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
        try:
            check_rows(config, dict(variant.mesh), variant.accumulate)
        except ConfigError as error:
            problems.append(f"{variant.name}: {error}")
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
    """Compares variants with the single-device step, whose rounding errors it measures once.

    Args:
        config: the run, with its model filled in.
        weights: parameters by name, layers unstacked.
        batch: the batch of the step.
        chance: the chance that a correct variant fails.
    """

    def __init__(self, config: TrainConfig, weights: Arrays, batch: Batch, chance: float):
        assert config.model is not None, "compare_variants fills in the model"
        self._config, self._weights, self._batch = config, weights, batch
        self._single_device, self._chance = Program(config, Variant()), chance
        self._steps = [self._single_device(weights, batch)]
        self._expected = self._expect(EQUIVALENTS)

    def _expect(self, count: int) -> ExpectedStep:
        """Takes the single-device step `count` times more."""
        model, seed = self._config.model, self._config.seed + len(self._steps)
        assert model is not None, "checked above"
        around = self._weights, self._batch
        self._steps += equivalent_steps(self._single_device, model, *around, seed, count)
        return ExpectedStep(self._steps, self._chance)

    def outcome(self, variant: Variant) -> Outcome:
        """Runs the step in a variant and compares it with the single-device step."""
        step = Program(self._config, variant)(self._weights, self._batch)
        found = tuple(self._expected.differences(step))
        wrong = [difference for difference in found if not difference.ok]
        if wrong and all(difference.is_suspect for difference in wrong):
            # One contrast fewer than steps.
            self._expected = self._expect(ENOUGH + 1 - len(self._steps))
            found = tuple(self._expected.differences(step))
        return Outcome(variant.name, found)
