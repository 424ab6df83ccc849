"""Bad steps change nothing: neither parameters, nor moments, nor the count of the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.train.optimizers.bad_steps import WARM_UP, with_guard


@pytest.mark.parametrize("bad", [np.nan, np.inf, 40.0], ids=str)
def test_a_bad_step_is_as_if_it_had_not_been(bad):
    inner = optax.adam(optax.linear_schedule(0.1, 0.0, 50))
    optimizer = with_guard(inner, 5.0)
    update = jax.jit(optimizer.update)
    params = expected = {"w": jnp.asarray([1.0, -2.0])}
    state, plain = optimizer.init(params), inner.init(params)
    for step in range(WARM_UP + 5):
        gradient = {"w": jnp.asarray([1.0, 0.5]) * (1 + 0.1 * step)}
        if step == WARM_UP + 2:
            updates, state = update({"w": jnp.asarray([bad, 1.0])}, state, params)
            assert bool(state.is_bad)
            assert not np.any(updates["w"])
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        assert not bool(state.is_bad)
        updates, plain = inner.update(gradient, plain, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6)
    assert int(state.good_steps) == WARM_UP + 5


def test_without_a_limit_a_large_gradient_counts():
    optimizer = with_guard(optax.sgd(1.0), None)
    params = {"w": jnp.zeros(1)}
    updates, state = optimizer.update({"w": jnp.asarray([1e9])}, optimizer.init(params), params)
    assert float(updates["w"][0]) == -1e9
    assert not bool(state.is_bad)
