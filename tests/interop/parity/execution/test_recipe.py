"""The training recipe: learning rates and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_model, relative_l2

from jaxllm.interop.parity.execution.recipe import Recipe, as_tuple
from jaxllm.params import named_parameters, split


def test_the_learning_rate_falls_linearly():
    recipe = Recipe(steps=4, learning_rate=1.0, final_learning_rate=0.2)
    assert [recipe.rate(step) for step in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_a_recipe_without_steps_is_rejected():
    with pytest.raises(ValueError, match="steps=0 is less than 1"):
        Recipe(steps=0)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.95), (0.9, 0.999), (0.95, 0.99999)])
def test_rounding_is_what_the_first_update_loses_in_float32(b1, b2):
    recipe = Recipe(b1=b1, b2=b2, weight_decay=0.0, clip_norm=1e9)
    gradient = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    optimizer = optax.adamw(recipe.rate, b1=b1, b2=b2, eps=recipe.eps, weight_decay=0.0)
    params = jnp.zeros(gradient.shape)
    update, _ = optimizer.update(jnp.asarray(gradient), optimizer.init(params), params)
    exact = -recipe.rate(0) * gradient / (np.abs(gradient.astype(np.float64)) + recipe.eps)
    assert 0.1 * recipe.rounding < relative_l2(update, exact) < recipe.rounding


def test_only_kernels_and_embeddings_decay():
    model, recipe = random_model(num_layers=1), Recipe()
    bind, params = split(model)
    optimizer = recipe.optimizer(model)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = {n for n, v in named_parameters(bind(updates)).items() if v.get_value().any()}
    names = named_parameters(model)
    assert moved == {name for name in names if name.endswith(("kernel", "embedding"))}
    assert moved < names.keys()


def test_as_tuple_returns_floats():
    assert as_tuple([jnp.float32(1.5), 2]) == (1.5, 2.0)
