"""Tracing the JAX model, on its own and fed the reference's outputs."""

import chex
import numpy as np
import pytest
from tiny import random_model

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.execution.jax_trace import is_whole, trace_free_and_forced, trace_model
from jaxllm.interop.parity.report.activation_rows import LOGITS

MODEL = random_model(num_layers=2)
INPUTS = Inputs(np.random.default_rng(0).integers(0, 96, (2, 12)))
PATHS = ["embed", "layers.0.attn", "layers.1.mlp_norm", "layers.1", "final_norm"]


def test_activations_and_logits_of_stacked_layers_are_recorded():
    found = trace_model(MODEL, INPUTS, PATHS)
    assert list(found) == [*PATHS, LOGITS]
    chex.assert_shape([found[path] for path in PATHS], (2, 12, 32))
    np.testing.assert_allclose(found[LOGITS], MODEL(INPUTS.target).logits, rtol=1e-4, atol=1e-5)
    x, scale = found["layers.1"], MODEL.final_norm.scale[...]
    normed = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + MODEL.final_norm.eps) * scale
    np.testing.assert_allclose(found["final_norm"], normed, rtol=1e-5)


def test_an_unknown_path_is_rejected():
    with pytest.raises(ValueError, match=r"the model has no activation at layers\.9, nothing"):
        trace_model(MODEL, INPUTS, ["embed", "layers.9", "nothing"])


def test_in_the_forced_run_each_activation_is_fed_the_reference():
    theirs = trace_model(MODEL, INPUTS, PATHS)
    theirs["layers.0.attn"] = theirs["layers.0.attn"] + 1
    ours, forced = trace_free_and_forced(MODEL, INPUTS, theirs)
    same = trace_model(MODEL, INPUTS, PATHS)
    chex.assert_trees_all_equal(ours, same)
    # Only activations between the changed one and the next replaced one differ.
    assert not np.array_equal(forced["layers.1.mlp_norm"], ours["layers.1.mlp_norm"])
    np.testing.assert_array_equal(forced["final_norm"], ours["final_norm"])


def test_tracing_restores_the_classes():
    before = {kind: kind.__call__ for kind in (type(MODEL), type(MODEL.final_norm))}
    trace_model(MODEL, INPUTS, PATHS)
    assert {kind: kind.__call__ for kind in before} == before


def test_scores_are_recorded_in_blocks():
    assert is_whole("layers.0.attn.scores")
    assert not is_whole("layers.0.attn")
