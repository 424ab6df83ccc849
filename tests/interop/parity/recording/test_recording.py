"""Recordings: activations, noise floors, padding, samples and plain data."""

import dataclasses

import chex
import numpy as np
import pytest
from tiny import random_model

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.layouts import Alignment
from jaxllm.interop.parity.levels.activations.forward import record_forward
from jaxllm.interop.parity.levels.sides import Comparison
from jaxllm.interop.parity.recording.recording import Recording, record
from jaxllm.interop.parity.recording.sample import Sample
from jaxllm.interop.parity.report.activation_rows import LOGITS


@pytest.fixture(scope="module")
def pair(make_llama, tokens):
    """A reference and a JAX model of the same sizes, and inputs whose last row is padded."""
    mask = np.ones((2, 12), np.int32)
    mask[1, 9:] = 0
    inputs = Inputs(tokens[:, :12], target_mask=mask)
    llama, model = make_llama(num_hidden_layers=1), random_model(num_layers=1)
    return Comparison(reference=llama, model=model, inputs=inputs, levels=("layers",))


@pytest.fixture(scope="module")
def recording(pair):
    return record_forward(pair)


def test_rows_without_padding_are_known(recording):
    assert recording.whole_rows == [0]
    target_BT, mask_BT = recording.inputs.target, recording.inputs.target_mask
    for inputs in (Inputs(target_BT), Inputs(target_BT, target_mask=0 * mask_BT)):
        assert dataclasses.replace(recording, inputs=inputs).whole_rows is None
    source = Inputs(target_BT, target_BT, mask_BT, mask_BT[::-1])
    assert dataclasses.replace(recording, inputs=source).whole_rows is None
    source = Inputs(target_BT, target_BT, source_mask=mask_BT[::-1])
    assert dataclasses.replace(recording, inputs=source).whole_rows == [1]


def test_every_activation_has_a_noise_floor_and_the_logits_are_last(recording):
    assert list(recording.arrays)[-1] == LOGITS
    paths = recording.arrays.keys()
    assert recording.free.draws.keys() == recording.forced.draws.keys() == paths
    for path in paths - {"embed"}:  # a lookup is exact
        found, size = recording.free.spread(path), np.linalg.norm(recording.unpadded(path))
        assert 0 < found.reference <= found.scale < found.limit < 1e-4 * size, path
    assert recording.free.spread("embed").limit == 0
    assert 0 < recording.largest[LOGITS] < 1e-3
    assert recording.versions.keys() == {"torch", "transformers"}


def test_padding_is_left_out(recording):
    chex.assert_shape(recording.arrays[LOGITS], (2, 12, 96))
    chex.assert_shape(recording.unpadded(LOGITS), (21, 96))
    other = np.zeros((2, 12, 7))
    chex.assert_shape(recording.unpadded("embed", other), (21, 7))


def test_a_sample_has_the_same_elements_on_both_sides(pair, recording):
    kept = record_forward(dataclasses.replace(pair, sample=Sample((0, 11), 5)))
    chex.assert_shape(kept.arrays["embed"], (3, 5))
    chex.assert_shape(kept.arrays[LOGITS], (3, 96))
    assert kept.forced is None
    assert kept.free.corrections["embed"].shape == (3, 5)
    again = kept.unpadded("embed", recording.arrays["embed"])
    np.testing.assert_array_equal(kept.unpadded("embed"), again)


def test_a_recording_survives_the_round_trip_through_plain_data(recording):
    again = Recording.from_pack(recording.to_pack())
    for field in dataclasses.fields(Recording):
        if field.name not in ("inputs", "arrays", "routers", "free", "forced"):
            assert getattr(again, field.name) == getattr(recording, field.name)
    for one, other in ((again.free, recording.free), (again.forced, recording.forced)):
        chex.assert_trees_all_equal(one.corrections, other.corrections)
        for path in other.draws:
            limit = other.spread(path).limit
            assert one.spread(path).limit == pytest.approx(limit, rel=1e-6)
    chex.assert_trees_all_equal(again.arrays, recording.arrays)
    chex.assert_trees_all_equal(again.inputs.arrays, recording.inputs.arrays)
    np.testing.assert_array_equal(again.unpadded(LOGITS), recording.unpadded(LOGITS))
    sampled = dataclasses.replace(recording, sample=Sample((0, 3), 5))
    assert Recording.from_pack(sampled.to_pack()).sample == Sample((0, 3), 5)


def test_a_reference_that_lacks_a_module_is_rejected(pair):
    class Named(Alignment):
        names = ("model.nothing",)

    with pytest.raises(ValueError, match=r"the reference has no model\.nothing"):
        record(pair.reference, pair.inputs, Named(()))
