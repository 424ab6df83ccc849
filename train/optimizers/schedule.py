"""Learning rate as a function of the step.

Every schedule is a function of the number of the step, from 0, that works on numbers and inside
`jit`. Bad arguments are a ValueError that says all that is wrong.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxllm.errors import UserError

Decay = Literal["cosine", "linear", "exponential"]

# What is left of the way from `peak` to `final` after a share r of the decay.
DECAYS = {
    "cosine": lambda r: 0.5 * (1 + jnp.cos(jnp.pi * r)),  # Loshchilov and Hutter, 2017
    "linear": lambda r: 1 - r,
    "exponential": lambda r: jnp.exp(-3 * r),
}


def warmup_decay(
    peak: float, final: float, warmup_steps: int, total_steps: int, decay: Decay = "cosine"
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a decay towards `final`, which holds from `total_steps` on.

    The first step, number 0, already learns: `peak * (step + 1) / warmup_steps`.
    """
    _check_steps(warmup_steps, total_steps)
    _check_rates(peak=peak, final=final)
    _check(decay not in DECAYS and f"decay={decay!r} is not one of {', '.join(DECAYS)}")
    _check(final > peak and f"final={final} is above peak={peak}")

    def rate(step: Array) -> Array:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        left = jnp.where(progress < 1, DECAYS[decay](jnp.clip(progress, 0, 1)), 0.0)
        return jnp.where(
            step < warmup_steps, _warm(peak, step, warmup_steps), final + left * (peak - final)
        )

    return rate


def multi_step(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    milestones: Sequence[float] = (0.8, 0.9),
    factors: Sequence[float] = (0.316, 0.1),
) -> optax.Schedule:
    """Linear warm-up to `peak`, then `peak` times each factor from that share of the run on.

    The shares are of all tokens, or steps. The default is that of DeepSeek LLM (2024).
    """
    _check_steps(warmup_steps, total_steps)
    _check_rates(peak=peak)
    _check(
        len(milestones) != len(factors)
        and f"{len(milestones)} milestones for {len(factors)} factors",
        list(milestones) != sorted(set(milestones)) and f"milestones={milestones} do not rise",
        any(not 0 < share < 1 for share in milestones)
        and f"milestones={milestones} are not all between 0 and 1",
        any(factor <= 0 for factor in factors) and f"factors={factors} are not all positive",
    )
    starts = [math.ceil(share * total_steps) for share in milestones]

    def rate(step: Array) -> Array:
        value = jnp.where(step < warmup_steps, _warm(peak, step, warmup_steps), peak)
        for start, factor in zip(starts, factors, strict=True):
            value = jnp.where(step >= start, peak * factor, value)
        return value

    return rate


class Phase(NamedTuple):
    """A schedule for the steps from `start` to before `stop`; it counts from 0 at `start`."""

    start: int
    stop: int
    schedule: optax.Schedule


def join_phases(phases: Sequence[Phase]) -> optax.Schedule:
    """One schedule after another. The last one's rate at its end holds from there on."""
    _check(not phases and "no phases")
    _check(
        phases[0].start != 0 and f"the first phase starts at step {phases[0].start}, not at 0",
        *(
            phase.stop <= phase.start and f"phase {phase.start} to {phase.stop} has no steps"
            for phase in phases
        ),
        *(
            after.start != before.stop
            and f"{'a gap' if after.start > before.stop else 'an overlap'} between the phases "
            f"{before.start} to {before.stop} and {after.start} to {after.stop}"
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


def _warm(peak: float, step: Array, warmup_steps: int) -> Array:
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
            not 0 <= rate < math.inf and f"{name}={rate} is not a number from 0 up"
            for name, rate in rates.items()
        )
    )


def _check(*problems: str | bool) -> None:
    """Raises UserError with those that are not False."""
    if found := [problem for problem in problems if problem]:
        raise UserError("; ".join(map(str, found)))
