"""Learning-rate schedules: warm-up with a decay, and joined phases.

A schedule maps a step number, counted from 0, to a learning rate. It works on Python numbers and
inside `jit`. Invalid arguments raise a UserError that lists every problem.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxllm.errors import UserError

from .schedule_config import Decay, PhaseConfig, ScheduleConfig

# The remaining fraction of `peak - final` after a fraction r of the decay.
DECAYS = {
    "cosine": lambda r: 0.5 * (1 + jnp.cos(jnp.pi * r)),  # Loshchilov and Hutter, 2017
    "linear": lambda r: 1 - r,
    "exponential": lambda r: jnp.exp(-3 * r),
}


def make_schedule(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
        config: the schedule, which is `config.phases` if there are any.
        steps: the length of the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.phases:
        starts = [0, *(phase.stop for phase in config.phases)]
        return join_phases(
            [
                Phase(start, phase.stop, _phase_schedule(phase, phase.stop - start))
                for start, phase in zip(starts, config.phases, strict=False)
            ]
        )
    if config.decay == "multi_step":
        return multi_step(peak, warmup, steps, *dataclasses.astuple(config.multi_step))
    if config.decay == "constant":
        return warmup_decay(peak, peak, warmup, steps)
    if config.decay == "inverse_sqrt":
        return inverse_sqrt(peak, warmup)
    factor = config.final_div_factor
    final = config.final_learning_rate if factor is None else peak / factor
    if config.decay == "wsd":
        return warmup_stable_decay(peak, final, warmup, steps, config.decay_steps)
    return warmup_decay(peak, final, warmup, steps, config.decay, config.cycles)


def _phase_schedule(phase: PhaseConfig, steps: int) -> optax.Schedule:
    return warmup_decay(
        phase.learning_rate, phase.final_learning_rate, phase.warmup_steps, steps, phase.decay
    )


def warmup_decay(
    peak: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    decay: Decay = "cosine",
    cycles: int = 1,
) -> optax.Schedule:
    """Linear warm-up to `peak`, then decay to `final`, which holds from `total_steps` on.

    The rate during warm-up is `peak * (step + 1) / warmup_steps`, so step 0 already learns.

    Args:
        peak: the highest learning rate.
        final: the last learning rate, at most `peak`. The exponential decay ends above it, at
            5% (exp(-3)) of the way back to `peak`, and jumps to it at `total_steps`.
        warmup_steps: fewer than `total_steps`.
        total_steps: warm-up and decay together.
        decay: the shape of the decay.
        cycles: how many equal decays follow each other, each from `peak` (Loshchilov and Hutter,
            2017).
    """
    _check_steps(warmup_steps, total_steps)
    _check_rates(peak=peak, final=final)
    _check(decay not in DECAYS and f"decay={decay!r} is not one of {', '.join(DECAYS)}")
    _check(final > peak and f"final={final} is greater than peak={peak}")
    _check(cycles < 1 and f"cycles={cycles} is less than 1")

    span = total_steps - warmup_steps
    _check(cycles * span >= 2**31 and f"cycles={cycles} are too many for {total_steps} steps")

    def rate(step: Array) -> Array:
        done = jnp.clip(step - warmup_steps, 0, span)
        # In integers: rounded, a decay could begin anew a step later.
        inside = (cycles * done % span if cycles > 1 else done) / span
        remaining = jnp.where(done < span, DECAYS[decay](inside), 0.0)
        return jnp.where(
            step < warmup_steps,
            _warmup_rate(peak, step, warmup_steps),
            final + remaining * (peak - final),
        )

    return rate


def warmup_stable_decay(
    peak: float, final: float, warmup_steps: int, total_steps: int, decay_steps: int | None = None
) -> optax.Schedule:
    """Linear warm-up, a constant rate, and at the end a linear decay (Hu et al., 2024).

    Args:
        peak: the constant rate.
        final: the rate from `total_steps` on.
        warmup_steps: steps of the warm-up.
        total_steps: all steps.
        decay_steps: steps of the decay; by default a tenth of `total_steps`, rounded up.
    """
    decay_steps = math.ceil(total_steps / 10) if decay_steps is None else decay_steps
    start = total_steps - decay_steps
    _check(
        start < warmup_steps
        and f"warmup_steps={warmup_steps} and decay_steps={decay_steps} are more than "
        f"total_steps={total_steps}"
    )
    decay = warmup_decay(peak, final, 0, decay_steps, "linear")
    stable = warmup_decay(peak, peak, warmup_steps, total_steps)
    return lambda step: jnp.where(step < start, stable(step), decay(jnp.maximum(step - start, 0)))


def inverse_sqrt(peak: float, warmup_steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then `peak * sqrt(warmup_steps / step)`, which has no end."""
    _check(warmup_steps < 1 and f"warmup_steps={warmup_steps} is less than 1, where it starts")
    _check_rates(peak=peak)
    return lambda step: jnp.where(
        step < warmup_steps,
        _warmup_rate(peak, step, warmup_steps),
        peak * jnp.sqrt(warmup_steps / jnp.maximum(step, 1)),
    )


def multi_step(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    milestones: Sequence[float] = (0.8, 0.9),
    factors: Sequence[float] = (0.316, 0.1),
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a constant rate that drops at each milestone.

    The defaults are those of DeepSeek LLM (2024).

    Args:
        peak: the learning rate between the warm-up and the first milestone.
        warmup_steps: fewer than `total_steps`.
        total_steps: the steps of the whole run.
        milestones: rising fractions of the run's steps (or tokens), each between 0 and 1.
        factors: from each milestone on, the rate is `peak` times its factor.
    """
    _check_steps(warmup_steps, total_steps)
    _check_rates(peak=peak)
    _check(
        len(milestones) != len(factors)
        and f"there are {len(milestones)} milestones but {len(factors)} factors",
        list(milestones) != sorted(set(milestones))
        and f"milestones={milestones} are not in increasing order",
        any(not 0 < fraction < 1 for fraction in milestones)
        and f"milestones={milestones} are not all between 0 and 1",
        any(factor <= 0 for factor in factors) and f"factors={factors} are not all positive",
    )
    starts = [math.ceil(fraction * total_steps) for fraction in milestones]

    def rate(step: Array) -> Array:
        value = jnp.where(step < warmup_steps, _warmup_rate(peak, step, warmup_steps), peak)
        for start, factor in zip(starts, factors, strict=True):
            value = jnp.where(step >= start, peak * factor, value)
        return value

    return rate


class Phase(NamedTuple):
    """A schedule for the steps from `start` up to, not including, `stop`.

    The schedule counts steps from 0 at `start`.
    """

    start: int
    stop: int
    schedule: optax.Schedule


def join_phases(phases: Sequence[Phase]) -> optax.Schedule:
    """Joins schedules into one; after the last phase, its rate at `stop` holds."""
    _check(not phases and "at least one phase is needed")
    _check(
        phases[0].start != 0 and f"the first phase starts at step {phases[0].start}, not at 0",
        *(
            phase.stop <= phase.start
            and f"the phase from step {phase.start} to {phase.stop} has no steps"
            for phase in phases
        ),
        *(
            after.start != before.stop
            and f"there is {'a gap' if after.start > before.stop else 'an overlap'} between the "
            f"phases {before.start} to {before.stop} and {after.start} to {after.stop}"
            for before, after in itertools.pairwise(phases)
        ),
    )

    def rate(step: Array) -> Array:
        step = jnp.minimum(step, phases[-1].stop)
        value = phases[0].schedule(step)
        for phase in phases[1:]:
            value = jnp.where(step >= phase.start, phase.schedule(step - phase.start), value)
        return value

    return rate


def _warmup_rate(peak: float, step: Array, warmup_steps: int) -> Array:
    return peak * (step + 1) / max(warmup_steps, 1)


def _check_steps(warmup_steps: int, total_steps: int) -> None:
    _check(
        total_steps < 1 and f"total_steps={total_steps} is less than 1",
        warmup_steps < 0 and f"warmup_steps={warmup_steps} is negative",
        warmup_steps >= total_steps > 0
        and f"warmup_steps={warmup_steps} is not less than total_steps={total_steps}",
    )


def _check_rates(**rates: float) -> None:
    _check(
        *(
            not 0 <= rate < math.inf and f"{name}={rate} is not a finite number of 0 or more"
            for name, rate in rates.items()
        )
    )


def _check(*problems: str | bool) -> None:
    """Raises UserError with every problem that is not False."""
    if found := [problem for problem in problems if problem]:
        raise UserError("; ".join(map(str, found)))
