"""Outputs of model calls, for every kind of model and activation dtype."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from kinds import CONFIGS, batch_of
from tiny import random_model, random_of


def test_logits_are_float32_and_cache_keeps_its_form():
    model, tokens = (
        random_model({"numerics.dtype": "bfloat16"}, num_layers=1),
        np.arange(10).reshape(2, 5),
    )
    out = jax.eval_shape(lambda: model(tokens))
    chex.assert_shape(out.logits, (2, 5, model.config.vocab_size))
    assert out.logits.dtype == jnp.float32
    assert out.cache is None
    cache = model.init_cache(2, 8)
    written = jax.eval_shape(lambda: model(tokens, cache=cache)).cache
    chex.assert_trees_all_equal_shapes_and_dtypes(written, cache)


def test_auxiliary_loss_is_a_scalar_and_zero_without_experts():
    config = CONFIGS["each vector"]
    inputs = batch_of("each vector")["inputs"]
    weighted = random_of(config)(inputs).aux_loss
    chex.assert_rank(weighted, 0)
    assert weighted > 0
    unweighted = dataclasses.replace(config.experts, aux_weight=0.0)
    assert random_of(dataclasses.replace(config, experts=unweighted))(inputs).aux_loss == 0
