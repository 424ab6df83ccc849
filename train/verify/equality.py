"""Whether layouts change no number: a training step in every variant against that of one device.

How far rounding alone may put two of them apart is measured: the step of one device, computed in
other ways that are just as right.
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
from jaxllm.sharding import DIMS
from jaxllm.train.config import ConfigError, TrainConfig
from jaxllm.train.loop import make_batches

from .noise import equivalent_steps
from .outcomes import GRADIENT, Difference, Equality, Outcome
from .variants import (
    Arrays,
    Batch,
    Program,
    Step,
    Variant,
    by_name,
    find_experts,
    submesh,
    variants,
)

log = logging.getLogger("jaxllm")

# Elements of a gradient that are so many times its noise have an update that is not noise.
ABOVE_NOISE = 1e4


def compare_variants(
    config: TrainConfig, model: Model | None = None, chosen: Sequence[Variant] | None = None
) -> Equality:
    """A training step of `config` in other variants against that of one device, in float32.

    Dropout is off, since microbatches drop out by keys of their own. Where a batch is accumulated,
    so are the experts' capacity and the loss that balances them, which are those of a call.

    Args:
        config: of the run; the batch is its first, of which fewer targets count.
        model: the weights that `config.init_from` names; by default they are drawn.
        chosen: the variants; by default all that the devices allow.

    Raises:
        ConfigError: a batch does not divide among the devices, or the data do not make one, or
            there are several processes.
    """
    if model is None:
        model = initialize(config.model, submesh({}), config.seed)
    exact = with_fields(model.config, numerics=NumericsConfig(), dropout=0.0)
    config = dataclasses.replace(config, model=exact, init_from=None, dtype=None, remat=None)
    if chosen is None:
        chosen = variants(config, jax.device_count())
    _check(config, chosen)
    weights, batch = _spread(model, config.seed), _thinned(config, model)
    judges: dict[bool, Judge] = {}
    outcomes = []
    for variant in chosen:
        parted = variant.accumulate > 1 and find_experts(model.config) is not None
        if parted not in judges:
            judges[parted] = Judge(_by_token(config) if parted else config, weights, batch)
        outcomes.append(judges[parted].outcome(variant))
        log.info("%s  %s", "equal" if outcomes[-1].ok else "WRONG", variant.name)
    return Equality(tuple(outcomes))


def _check(config: TrainConfig, chosen: Sequence[Variant]) -> None:
    """Refuses what cannot be run, and what proves nothing."""
    if jax.process_count() > 1:
        raise ConfigError(f"layouts are compared in one process, not in {jax.process_count()}")
    problems = []
    for variant in chosen:
        rows = config.batch_size // variant.accumulate
        ways = math.prod(size for axis, size in variant.mesh if axis in DIMS["B"])
        if rows % ways:
            problems.append(
                f"{variant.name}: batch_size / accumulate = {rows} sequences do not divide among "
                f"{' x '.join(DIMS['B'])} = {ways} devices"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _spread(model: Model, seed: int) -> Arrays:
    """The model's weights in float32, none of its parameters constant."""
    rng = np.random.default_rng(seed)
    weights = {name: x.astype(np.float32) for name, x in by_name(split(model)[1]).items()}
    for name, x in weights.items():
        if x.size > 1 and np.all(x == x.flat[0]):
            # Norms start as ones and biases as zeros, which would hide that two are mixed up.
            weights[name] = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    return weights


def _thinned(config: TrainConfig, model: Model) -> Batch:
    """The run's first batch; of its rows very different numbers of targets count, of one none."""
    batch = next(make_batches(config, model, submesh({})).train(0))
    mask = batch["mask"]
    share_B = np.linspace(0, 1, len(mask)).reshape(-1, *(1,) * (mask.ndim - 1))
    counts = np.random.default_rng(config.seed).random(mask.shape) < share_B
    return {**batch, "mask": mask & counts}


def _by_token(config: TrainConfig) -> TrainConfig:
    """The same run, where no token's loss depends on the others of its microbatch."""
    assert config.model is not None, "filled in above"
    experts = find_experts(config.model)
    assert experts is not None, "as asked"
    # The expert for those beyond the capacity is there as long as there is one.
    roomy = experts.capacity and config.batch_size * config.seq_len * experts.top_k
    free = dataclasses.replace(experts, aux_weight=0.0, capacity=roomy)
    return dataclasses.replace(config, model=with_fields(config.model, experts=free))


class Judge:
    """The step of one device, and its noise."""

    def __init__(self, config: TrainConfig, weights: Arrays, batch: Batch):
        assert config.model is not None, "filled in above"
        self._config, self._weights, self._batch = config, weights, batch
        alone = Program(config, Variant())
        self._alone = alone(weights, batch)
        otherwise = equivalent_steps(alone, config.model, weights, batch, config.seed + 1)
        self._others = list(otherwise)

    def outcome(self, variant: Variant) -> Outcome:
        """That of a variant."""
        step = Program(self._config, variant)(self._weights, self._batch)
        return Outcome(variant.name, tuple(differences(step, self._alone, self._others)))


def differences(step: Step, alone: Step, others: Sequence[Step]) -> Iterator[Difference]:
    """How far a step is from that of one device: the numbers, then parameter by parameter."""
    for what, field in (("loss", "loss"), ("norm of all gradients", "grad_norm")):
        ours, wanted, *noise = (getattr(s, field) for s in (step, alone, *others))
        yield Difference(what, "", *deviation(ours, wanted, noise))
    for what in (GRADIENT, "square"):
        ours, wanted, *noise = (getattr(s, what) for s in (step, alone, *others))
        whole = joint_norm(wanted.values())
        for name, array in wanted.items():
            found = gradient_deviation(ours[name], array, [arrays[name] for arrays in noise], whole)
            yield Difference(what, name, *found)
    for name in alone.update:
        yield _update(name, step, alone, others)


def _update(name: str, step: Step, alone: Step, others: Sequence[Step]) -> Difference:
    """The update of those elements of a parameter whose gradient is more than noise."""
    noise = (s.gradient[name] for s in others)
    counts = exceeds_noise(alone.gradient[name], noise, ABOVE_NOISE)
    ours, wanted, *theirs = (s.update[name][counts] for s in (step, alone, *others))
    found = update_deviation(ours, wanted, theirs, alone.before[name][counts])
    return Difference("update", name, *found)
