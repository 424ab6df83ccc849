"""Log-likelihoods of answers: those of all logits, with the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_model, relative_l2

from jaxllm.params import split
from jaxllm.train import make_mesh
from jaxllm.train.data.preference.config import PreferenceRows
from jaxllm.train.data.preference.pair import EncodedPair
from jaxllm.train.loss import LossConfig
from jaxllm.train.preference.log_likelihoods import log_likelihoods

T, B = 14, 4


def random_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(B):
        prompt = rng.integers(1, 96, rng.integers(1, 5)).tolist()
        answers = [rng.integers(1, 96, rng.integers(1, 9)).tolist() for _ in range(2)]
        pairs.append(EncodedPair(prompt + answers[0], prompt + answers[1], len(prompt)))
    return PreferenceRows(pairs, T).take(np.arange(B))


def from_all_logits(model, batch):
    """The same by log-softmax. Padding follows the tokens, which do not see it."""
    tokens = batch["tokens"].reshape(-1, T + 1)
    all_BTV = jax.nn.log_softmax(model(tokens[:, :-1]).logits)
    chosen_BT = jnp.take_along_axis(all_BTV, tokens[:, 1:, None], axis=2)[:, :, 0]
    return jnp.sum(chosen_BT.reshape(B, 2, T) * batch["targets"], axis=2)


@pytest.mark.parametrize(
    "mesh_shape", [{}, {"data": 2, "tensor": 2, "fsdp": 2}], ids=["1", "2x2x2"]
)
def test_values_and_gradients_are_those_of_all_logits(mesh_shape):
    model, batch = random_model(), random_batch()
    bind, params = split(model)
    weights = np.random.default_rng(1).standard_normal((B, 2))

    def ours(params):
        found, _ = log_likelihoods(bind(params), batch, LossConfig(chunk_tokens=8))
        return jnp.sum(found * weights), found

    def expected(params):
        found = from_all_logits(bind(params), batch)
        return jnp.sum(found * weights), found

    wanted_grads, wanted = jax.jit(jax.grad(expected, has_aux=True))(params)
    devices = jax.devices()[: 8 if mesh_shape else 1]
    with jax.set_mesh(make_mesh(**mesh_shape, devices=devices)):
        grads, found = jax.jit(jax.grad(ours, has_aux=True))(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True)
    assert all(relative_l2(a, b) < 1e-5 for a, b in pairs)
