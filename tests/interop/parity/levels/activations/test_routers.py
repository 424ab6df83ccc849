"""Routers: a token that rounding sends to other experts leaves training undecided."""

import dataclasses

import numpy as np
import pytest
from hf_cases import CASES, tokens_of

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.levels.activations.routers import (
    has_tie,
    record_routers,
    router_flips,
    router_paths,
)
from jaxllm.interop.parity.levels.sides import Comparison


def comparison(name, folder):
    reference = CASES[name].build()
    reference.save_pretrained(folder)
    tokens = tokens_of(reference, batch_size=1)[:, :40]
    model = load_pretrained(folder, dtype="float32")
    return Comparison(reference=reference, model=model, inputs=Inputs(tokens), levels=("logits",))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return comparison("mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="module")
def recording(mixtral):
    return record_routers(mixtral, mixtral.inputs)


def test_only_routers_are_recorded(mixtral, recording):
    assert router_paths(recording) == [f"layers.{i}.mlp.router" for i in range(4)]
    assert all(recording.largest[path] > 0 for path in router_paths(recording))
    assert recording.forced is None


def test_a_correct_model_has_no_tie(mixtral, recording):
    assert not has_tie(recording, mixtral.unstacked)


def test_a_token_that_rounding_may_reroute_is_a_tie(mixtral, recording):
    """The reference's first router chooses another expert, by less than rounding, or by more."""
    path = router_paths(recording)[0]
    top_k = mixtral.model.config.experts.top_k
    for gap, is_tie in ((0.5 * recording.largest[path], True), (1.0, False)):
        logits = recording.arrays[path].copy()
        order = np.argsort(-logits[0, 7])
        logits[0, 7, order[top_k]] = logits[0, 7, order[top_k - 1]] + gap
        other = dataclasses.replace(recording, arrays={**recording.arrays, path: logits})
        ours = {path: recording.arrays[path] for path in router_paths(recording)}
        [first, *_] = router_flips(ours, other, mixtral.unstacked)
        assert (first.tokens, first.is_tie) == (1, is_tie)
        assert has_tie(other, mixtral.unstacked) == is_tie


def test_models_without_experts_have_no_routers(tmp_path):
    llama = comparison("llama", tmp_path)
    assert record_routers(llama, llama.inputs) is None
    assert not has_tie(None, llama.unstacked)
