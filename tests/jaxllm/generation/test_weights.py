"""Weights for decoding: the same numbers, one compiled program, and no lasting copy."""

import gc

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from kinds import CONFIGS
from tiny import random_model, random_of

from jaxllm.generation import generate
from jaxllm.generation.weights import _unstack, decoding_weights
from jaxllm.models import with_scanned_layers


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_weights_are_those_of_layers_one_by_one(kind):
    model = random_model() if kind == "decoder" else random_of(CONFIGS[kind])
    graphdef, params = decoding_weights(model)
    listed, state = nnx.split(with_scanned_layers(model, False))
    assert graphdef == listed
    chex.assert_trees_all_equal(params, nnx.to_pure_dict(state))


def test_layers_one_by_one_are_taken_as_they_are():
    model = with_scanned_layers(random_model(), False)
    before = _unstack._cache_size()
    _, params = decoding_weights(model)
    assert _unstack._cache_size() == before
    embedding = params["embed"]["embedding"]
    assert embedding is model.embed.embedding.get_value()


def test_memory_is_flat_over_many_calls():
    """No copy of scanned weights waits for the collector of cycles, which is off here."""
    model, prompts = random_model(num_layers=2), [[1, 2, 3], [4]]

    def live_bytes() -> int:
        return sum(x.nbytes for x in jax.live_arrays())

    generate(model, prompts, 4)
    gc.collect()
    gc.disable()
    try:
        before, programs = live_bytes(), _unstack._cache_size()
        for seed in range(100):
            generate(model, prompts, 4, seed=seed)
            assert live_bytes() <= before
        assert _unstack._cache_size() == programs
    finally:
        gc.enable()
    assert np.isfinite(before)
