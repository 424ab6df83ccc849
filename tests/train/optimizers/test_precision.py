"""bfloat16 parameters: a float32 copy adds small updates up; random rounding keeps their mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.train.optimizers.precision import (
    round_stochastically,
    with_master,
    with_stochastic_rounding,
)

SMALL = 1e-4  # an update, of which bfloat16 near 1 has steps of 0.0078
STEPS = 200


def descend(optimizer, start):
    """Parameters after equal gradients of 1, each update of which bfloat16 alone would lose."""

    @jax.jit
    def step(params, state):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, optimizer.init(start)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


@pytest.fixture
def start():
    return {"w": jnp.linspace(1, 2, 1000, dtype=jnp.bfloat16)}


def test_without_help_small_updates_are_lost(start):
    params, _ = descend(optax.sgd(SMALL), start)
    assert jnp.array_equal(params["w"], start["w"])


def test_a_master_copy_is_what_float32_computes(start):
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), start)
    expected, _ = descend(optax.adam(SMALL), wide)
    params, state = descend(with_master(optax.adam(SMALL)), start)
    assert jnp.array_equal(state.master["w"], expected["w"])
    assert params["w"].dtype == jnp.bfloat16
    assert jnp.array_equal(params["w"], expected["w"].astype(jnp.bfloat16))


def test_random_rounding_moves_by_the_mean(start):
    params, _ = descend(with_stochastic_rounding(optax.sgd(SMALL), seed=0), start)
    moved = np.asarray(start["w"], np.float32) - np.asarray(params["w"], np.float32)
    assert params["w"].dtype == jnp.bfloat16
    assert moved.mean() == pytest.approx(STEPS * SMALL, rel=0.05)


def test_rounding_is_to_a_neighbour_with_the_right_odds():
    x = jnp.full(20_000, 1 + 0.25 * 2**-7, jnp.float32)  # a quarter of the way to the next
    found = np.asarray(round_stochastically(x, jax.random.key(0)), np.float32)
    assert set(np.unique(found)) == {1.0, 1 + 2**-7}
    assert (found > 1).mean() == pytest.approx(0.25, abs=0.01)
    exact = jnp.asarray([0.0, -1.5, 3e38, jnp.inf, jnp.nan])
    kept = round_stochastically(exact.astype(jnp.bfloat16).astype(jnp.float32), jax.random.key(1))
    wide = (np.asarray(x.astype(jnp.bfloat16), np.float32) for x in (kept, exact))
    np.testing.assert_array_equal(*wide)
