"""Parameters are looked up by name, one at a time."""

import chex
import numpy as np
import pytest
from broken_models import arrays_of
from tiny import random_model

from jaxllm.interop.parity.execution.jax_parameters import LazyWeights


def test_lazy_weights_equal_the_models_parameters():
    model = random_model()
    weights, arrays = LazyWeights(model), arrays_of(model)
    assert list(weights) == list(arrays)
    assert len(weights) == len(arrays)
    assert all(isinstance(array, np.ndarray) for array in weights.values())
    chex.assert_trees_all_equal(dict(weights), arrays)


def test_lazy_weights_reflect_changes_of_the_model():
    model = random_model()
    weights = LazyWeights(model)
    before = weights["final_norm.scale"].copy()
    model.final_norm.scale[...] *= 2
    np.testing.assert_array_equal(weights["final_norm.scale"], 2 * before)
    with pytest.raises(KeyError):
        weights["nothing"]
