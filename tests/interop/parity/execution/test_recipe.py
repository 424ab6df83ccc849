"""The training recipe: learning rates and weight decay."""

import jax
import jax.numpy as jnp
import pytest
from tiny import random_model

from jaxllm.interop.parity.execution.recipe import Recipe, as_tuple
from jaxllm.params import named_parameters, split


def test_the_learning_rate_falls_linearly():
    recipe = Recipe(steps=4, learning_rate=1.0, final_learning_rate=0.2)
    assert [recipe.rate(step) for step in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_a_recipe_without_steps_is_rejected():
    with pytest.raises(ValueError, match="steps=0 is less than 1"):
        Recipe(steps=0)


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
