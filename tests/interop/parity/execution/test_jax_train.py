"""Training in JAX: loss, gradients and update against hand computation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from broken_models import arrays_of
from tiny import random_model, random_of
from vector_models import SEQUENCE

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.execution.jax_train import loss_unit, mean_loss, train_model
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.params import named_parameters, split
from jaxllm.train.objective import get_objective

MODEL = random_model(num_layers=1)
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 10))
RECIPE = Recipe(steps=2)


def test_the_loss_is_the_next_token_loss_without_padding():
    bind, params = split(MODEL)
    mask = np.ones((2, 10), np.int32)
    mask[1, 6:] = 0
    found = mean_loss(params, bind, {"target": TOKENS, "target_mask": mask})
    log_probs = jax.nn.log_softmax(MODEL(TOKENS, segment_ids=mask).logits)
    wanted = [
        -log_probs[b, t, TOKENS[b, t + 1]] for b, last in ((0, 9), (1, 5)) for t in range(last)
    ]
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-5)


@pytest.fixture(scope="module")
def run():
    batches = [Inputs(TOKENS), Inputs(TOKENS[::-1].copy())]
    return train_model(MODEL, batches, RECIPE.optimizer(MODEL), {"final_norm.scale"})


def test_a_run_has_all_losses_and_the_arrays_of_the_first_step(run):
    assert len(run.losses) == 2
    assert run.first.keys() == {"gradient", "m", "v", "update"}
    names = named_parameters(MODEL).keys() - {"final_norm.scale"}
    stacked = {name.replace("0:1", "0") for name in names}
    assert all(arrays.keys() == stacked for arrays in run.first.values())


def test_moments_and_update_follow_from_the_gradient(run):
    gradient = run.first["gradient"]["embed.embedding"]
    clipped = gradient * min(1, RECIPE.clip_norm / run.norm)
    np.testing.assert_allclose(
        run.first["m"]["embed.embedding"], (1 - RECIPE.b1) * clipped, rtol=1e-4, atol=1e-9
    )
    embedding = np.asarray(MODEL.embed.embedding[...])
    large = np.abs(clipped) > 1e-4
    wanted = -RECIPE.learning_rate * (np.sign(clipped) + RECIPE.weight_decay * embedding)
    found = run.first["update"]["embed.embedding"]
    np.testing.assert_allclose(found[large], wanted[large], rtol=1e-2)


def test_training_does_not_change_the_model(run):
    chex.assert_trees_all_equal(arrays_of(MODEL), arrays_of(random_model(num_layers=1)))


def test_an_optimizer_without_moments_is_rejected():
    with pytest.raises(ValueError, match="no mu and no nu"):
        train_model(MODEL, [Inputs(TOKENS)], optax.sgd(1e-3))


def test_the_unit_of_the_loss_is_that_of_the_training_objective():
    tokens = Inputs(TOKENS)
    assert loss_unit(tokens) == get_objective(MODEL).unit
    forecaster = random_of(SEQUENCE)
    vectors = Inputs(np.zeros((1, 4, SEQUENCE.input_dim), np.float32)).with_labels(forecaster)
    assert loss_unit(vectors) == get_objective(forecaster).unit


def test_the_loss_of_vectors_is_the_mean_squared_error():
    bind, params = split(MODEL)
    logits = MODEL(TOKENS).logits
    given = {"target": jnp.asarray(TOKENS), "labels": logits + 2.0}
    assert float(mean_loss(params, bind, given)) == pytest.approx(4.0, rel=1e-4)
