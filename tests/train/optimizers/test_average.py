"""The moving average of weights."""

import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.train.optimizers.average import averaged, with_average


def test_the_average_follows_the_parameters():
    optimizer = with_average(optax.sgd(1.0), 0.75)
    params = {"w": jnp.asarray([4.0, 2.0])}
    state = optimizer.init(params)
    expected = np.asarray(params["w"])
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.ones(2)}, state, params)
        params = optax.apply_updates(params, updates)
        expected = 0.75 * expected + 0.25 * np.asarray(params["w"])
    np.testing.assert_allclose(averaged(state, params)["w"], expected, rtol=1e-6)
    assert averaged(optax.sgd(1.0).init(params), params) is params
