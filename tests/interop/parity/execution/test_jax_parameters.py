"""Parameters are looked up by name, one at a time."""

import numpy as np
import pytest
from tiny import random_model

from jaxllm.interop.parity.execution.jax_parameters import LazyWeights
from jaxllm.params import named_parameters


def test_it_is_the_parameters_by_name():
    model = random_model()
    weights, ours = LazyWeights(model), named_parameters(model)
    assert list(weights) == list(ours)
    assert len(weights) == len(ours)
    for name, variable in ours.items():
        assert isinstance(weights[name], np.ndarray)
        np.testing.assert_array_equal(weights[name], variable.get_value())


def test_it_follows_the_model():
    model = random_model()
    weights = LazyWeights(model)
    before = weights["final_norm.scale"].copy()
    model.final_norm.scale[...] *= 2
    np.testing.assert_array_equal(weights["final_norm.scale"], 2 * before)
    with pytest.raises(KeyError):
        weights["nothing"]
