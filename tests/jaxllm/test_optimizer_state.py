"""A state of AdamW holds all that the next update depends on, in PyTorch and here."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxllm.optimizer_state import AdamWState

OPTIONS = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
GRADIENTS = np.random.default_rng(0).standard_normal((4, 3, 5))


@pytest.fixture
def states() -> list[tuple[AdamWState, np.ndarray]]:
    """The state of PyTorch's AdamW and the weight, after each of a few updates."""
    weight = torch.nn.Parameter(torch.ones(3, 5, dtype=torch.float64))
    optimizer, found = torch.optim.AdamW([weight], **OPTIONS), []
    for gradient in GRADIENTS:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        [group], entry = optimizer.param_groups, optimizer.state[weight]
        state = AdamWState(
            step=int(entry["step"]),
            mu={"w": entry["exp_avg"].numpy().copy()},
            nu={"w": entry["exp_avg_sq"].numpy().copy()},
            learning_rate=group["lr"],
            b1=group["betas"][0],
            b2=group["betas"][1],
            eps=group["eps"],
            weight_decay={"w": group["weight_decay"]},
        )
        found.append((state, weight.detach().numpy().copy()))
    return found


@pytest.mark.parametrize("after", range(len(GRADIENTS) - 1))
def test_the_next_update_follows_from_it_and_the_gradient(states, after):
    """By the formula of the paper (arXiv:1711.05101)."""
    (state, weight), (following, expected) = states[after : after + 2]
    gradient, step = GRADIENTS[after + 1], state.step + 1
    mu = state.b1 * state.mu["w"] + (1 - state.b1) * gradient
    nu = state.b2 * state.nu["w"] + (1 - state.b2) * gradient**2
    moved = mu / (1 - state.b1**step) / (np.sqrt(nu / (1 - state.b2**step)) + state.eps)
    found = weight - state.learning_rate * (moved + state.weight_decay["w"] * weight)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(following.mu["w"], mu, rtol=1e-12)
    np.testing.assert_allclose(following.nu["w"], nu, rtol=1e-12)


def test_optax_goes_on_from_it(states):
    (state, weight), (_, expected) = states[1:3]
    decay = state.weight_decay["w"]
    optimizer = optax.adamw(state.learning_rate, state.b1, state.b2, state.eps, weight_decay=decay)
    params = {"w": jnp.asarray(weight, jnp.float32)}
    adam, *rest = optimizer.init(params)
    moments = {
        name: {"w": jnp.asarray(moment["w"], jnp.float32)}
        for name, moment in {"mu": state.mu, "nu": state.nu}.items()
    }
    adam = adam._replace(count=jnp.asarray(state.step, jnp.int32), **moments)
    gradient = {"w": jnp.asarray(GRADIENTS[2], jnp.float32)}
    updates, _ = optimizer.update(gradient, (adam, *rest), params)
    np.testing.assert_allclose(params["w"] + updates["w"], expected, rtol=1e-6)
