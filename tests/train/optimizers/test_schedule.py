"""Schedules: compared at every step with plain Python formulas; and invalid arguments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.schedule import (
    DECAYS,
    Phase,
    join_phases,
    make_schedule,
    multi_step,
    warmup_decay,
)
from jaxllm.train.optimizers.schedule_config import MultiStepConfig, PhaseConfig

COEFFICIENTS = {
    "cosine": lambda r: 0.5 * (1 + math.cos(math.pi * r)),
    "linear": lambda r: 1 - r,
    "exponential": lambda r: math.exp(-3 * r),
}


def original(step: int, decay: str, peak: float, final: float, warmup: int, total: int) -> float:
    """The learning rate as tlama-core computes it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= total:
        return final
    ratio = (step - warmup) / (total - warmup)
    return final + COEFFICIENTS[decay](ratio) * (peak - final)


def rates(schedule, count: int) -> np.ndarray:
    return np.array([float(schedule(step)) for step in range(count)])


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (9, 10), (1, 2)])
def test_each_decay_matches_tlama_core(decay, warmup, total):
    schedule = jax.jit(warmup_decay(2.0, 0.25, warmup, total, decay))
    expected = [original(step, decay, 2.0, 0.25, warmup, total) for step in range(total + 3)]
    np.testing.assert_allclose(rates(schedule, total + 3), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (6, 0.1 + 0.9 * 0.8535533905932737),  # r = 1/4
        (8, 0.55),  # r = 1/2
        (10, 0.1 + 0.9 * 0.14644660940672627),  # r = 3/4
        (12, 0.1),
        (1000, 0.1),
    ],
)
def test_schedule_values_computed_by_hand(step, rate):
    """Warm-up to 1.0 in four steps, then cosine decay to 0.1 at step 12."""
    assert float(warmup_decay(1.0, 0.1, 4, 12)(step)) == pytest.approx(rate, rel=1e-6)
    assert original(step, "cosine", 1.0, 0.1, 4, 12) == pytest.approx(rate)


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 7), (1, 2), (9, 10), (3, 50)])
def test_schedule_matches_the_formula_at_every_step(warmup, total):
    config = OptimizerConfig(learning_rate=3e-4, final_learning_rate=3e-5, warmup_steps=warmup)
    schedule = jax.jit(make_schedule(config, total))
    for step in range(total + 3):
        expected = original(step, "cosine", 3e-4, 3e-5, warmup, total)
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected, rel=1e-5), step


def test_the_exponential_decay_jumps_to_the_final_rate():
    """The formula leaves exp(-3) at its end; from `total_steps` on the rate is `final`."""
    before, at = rates(warmup_decay(1.0, 0.0, 0, 1000, "exponential"), 1001)[-2:]
    assert before == pytest.approx(math.exp(-3), rel=1e-2)
    assert at == 0


def test_multi_step_drops_at_its_milestones():
    found = rates(jax.jit(multi_step(1.0, 2, 20)), 22)
    expected = [0.5, 1.0, *[1.0] * 14, *[0.316] * 2, *[0.1] * 4]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_phases_follow_each_other():
    first, second = warmup_decay(1.0, 0.5, 2, 6), warmup_decay(0.4, 0.1, 0, 4, "linear")
    both = jax.jit(join_phases([Phase(0, 6, first), Phase(6, 10, second)]))
    expected = [*rates(first, 6), *rates(second, 4), 0.1, 0.1]
    np.testing.assert_allclose(rates(both, 12), expected, rtol=1e-6)


def test_configs_select_every_schedule():
    linear = OptimizerConfig(learning_rate=1.0, final_div_factor=10, warmup_steps=1, decay="linear")
    assert rates(make_schedule(linear, 10), 11)[-1] == pytest.approx(0.1)
    drops = MultiStepConfig(milestones=(0.5,), factors=(0.2,))
    stepped = OptimizerConfig(learning_rate=1.0, decay="multi_step", multi_step=drops)
    np.testing.assert_allclose(rates(make_schedule(stepped, 4), 4), [1, 1, 0.2, 0.2], rtol=1e-6)
    phases = (PhaseConfig(stop=2, learning_rate=1.0), PhaseConfig(stop=4, learning_rate=0.5))
    in_phases = make_schedule(OptimizerConfig(phases=phases), 4)
    np.testing.assert_allclose(rates(in_phases, 4), [1, 0.5, 0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "complaints"),
    [
        (lambda: warmup_decay(1.0, 0.0, 10, 10), ["warmup_steps=10", "total_steps=10"]),
        (lambda: warmup_decay(1.0, 0.0, -1, 10), ["warmup_steps=-1"]),
        (lambda: warmup_decay(1.0, 0.0, 0, 0), ["total_steps=0"]),
        (lambda: warmup_decay(0.1, 0.2, 0, 10), ["final=0.2", "peak=0.1"]),
        (lambda: warmup_decay(-1.0, -2.0, 0, 10), ["peak=-1.0", "final=-2.0"]),
        (lambda: warmup_decay(1.0, 0.0, 0, 10, "square"), ["'square'", "cosine, linear"]),
        (lambda: multi_step(1.0, 0, 10, (0.8,), (0.3, 0.1)), ["1 milestones but 2 factors"]),
        (lambda: multi_step(1.0, 0, 10, (0.9, 0.8), (0.3, 0.1)), ["not in increasing order"]),
        (lambda: multi_step(1.0, 0, 10, (1.0,), (0.3,)), ["between 0 and 1"]),
        (lambda: multi_step(1.0, 0, 10, (0.5,), (0.0,)), ["not all positive"]),
        (lambda: join_phases([]), ["at least one phase"]),
        (lambda: join_phases([Phase(1, 2, abs)]), ["starts at step 1"]),
        (lambda: join_phases([Phase(0, 0, abs)]), ["0 to 0 has no steps"]),
        (
            lambda: join_phases([Phase(0, 4, abs), Phase(3, 6, abs)]),
            ["an overlap", "0 to 4", "3 to 6"],
        ),
        (lambda: join_phases([Phase(0, 4, abs), Phase(5, 6, abs)]), ["a gap", "0 to 4", "5 to 6"]),
        (lambda: OptimizerConfig(final_div_factor=0.5), ["final_div_factor=0.5"]),
        (
            lambda: OptimizerConfig(final_div_factor=2, final_learning_rate=1e-5),
            ["either optimizer.final_learning_rate or optimizer.final_div_factor"],
        ),
    ],
)
def test_invalid_arguments_are_reported(make, complaints):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the messages are checked below
        make()
    for complaint in complaints:
        assert complaint in str(caught.value)


def test_an_invalid_phase_is_reported():
    with pytest.raises(ValueError, match=r"optimizer\.phases: learning_rate=nan is not a finite"):
        PhaseConfig(stop=2, learning_rate=math.nan)


def steps_of(schedule, optimizer, count: int) -> list[float]:
    """The rates of a scheduler of transformers."""
    found = []
    for _ in range(count):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    "decay", ["constant", "linear", "cosine", "cosine x 3", "cosine x 7", "wsd", "inverse_sqrt"]
)
def test_schedules_by_name_are_those_of_transformers(decay):
    """After the warm-up: theirs starts from 0, where a step does nothing."""
    total, warmup, last = 50, 5, 12
    decay, _, cycles = decay.partition(" x ")
    config = OptimizerConfig(
        learning_rate=0.5,
        warmup_steps=warmup,
        decay=decay,
        decay_steps=last if decay == "wsd" else None,
        cycles=int(cycles or 1),
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    given = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: (
            get_cosine_with_hard_restarts_schedule_with_warmup(
                optimizer, warmup, total, num_cycles=int(cycles)
            )
            if cycles
            else get_cosine_schedule_with_warmup(optimizer, warmup, total)
        ),
        "inverse_sqrt": lambda: get_inverse_sqrt_schedule(optimizer, warmup),
        "wsd": lambda: get_wsd_schedule(
            optimizer, warmup, last, num_stable_steps=total - warmup - last, decay_type="linear"
        ),
    }
    expected = steps_of(given[decay](), optimizer, total)
    found = rates(make_schedule(config, total), total)
    np.testing.assert_allclose(found[warmup:], expected[warmup:], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[: warmup - 1], expected[1:warmup], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "cosine", "decay_steps": 3}, "only for decay='wsd'"),
        ({"decay": "wsd", "decay_steps": 0}, "at least 1"),
    ],
)
def test_steps_of_the_last_part_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def test_parts_that_are_longer_than_the_run_are_reported():
    with pytest.raises(ValueError, match="warmup_steps=6 and decay_steps=8 are more than"):
        make_schedule(OptimizerConfig(warmup_steps=6, decay="wsd", decay_steps=8), 10)
    with pytest.raises(ValueError, match="warmup_steps=0 is less than 1, where it starts"):
        make_schedule(OptimizerConfig(decay="inverse_sqrt"), 10)
