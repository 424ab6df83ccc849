"""Shared behavior of models with an encoder and a decoder, over tokens and over vectors."""

import functools

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from kinds import CONFIGS, batch_of
from tiny import random_of, relative_l2

from jaxllm.models.two_stacks import TwoStacks

KINDS = {"encoder-decoder": ("source", "tokens"), "vectors given vectors": ("inputs", "targets")}


@functools.cache
def model_and_inputs(kind: str) -> tuple[TwoStacks, tuple[np.ndarray, np.ndarray]]:
    batch = batch_of(kind)
    source, target = (batch[name] for name in KINDS[kind])
    return random_of(CONFIGS[kind]), (source, target)


@jax.jit
def run(model, src, tgt):
    return model(src, tgt).logits


@pytest.mark.parametrize("kind", KINDS)
def test_call_equals_encode_then_decode(kind):
    model, (src, tgt) = model_and_inputs(kind)

    @jax.jit
    def in_two(model, src, tgt):
        source, _ = model.encode(src)
        return model.decode(tgt, source).logits

    assert relative_l2(in_two(model, src, tgt), run(model, src, tgt)) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_restacking_both_stacks_round_trips(kind):
    model, (src, tgt) = model_and_inputs(kind)
    assert model.restacked(True) is model
    listed = model.restacked(False)
    assert list(listed.encoder.layers) == list(listed.decoder.layers) == ["0", "1"]
    assert relative_l2(run(listed, src, tgt), run(model, src, tgt)) <= 1e-6
    again = listed.restacked(True)
    assert again.config == model.config
    chex.assert_trees_all_equal(nnx.state(again), nnx.state(model))
