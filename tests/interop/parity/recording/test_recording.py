"""A recording has what the reference computed, its noise, and nothing of padding."""

import dataclasses

import numpy as np
import pytest
from tiny import random_model

from jaxllm.interop.parity.alignment.activations import Alignment
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.levels.forward import record_forward
from jaxllm.interop.parity.levels.pair import Pair
from jaxllm.interop.parity.recording.plain import plain
from jaxllm.interop.parity.recording.recording import Recording, record
from jaxllm.interop.parity.recording.sample import Sample
from jaxllm.interop.parity.report.rows import LOGITS


@pytest.fixture(scope="module")
def pair(make_llama, tokens):
    """A reference of the tiny model's sizes, and inputs whose last row is padded."""
    mask = np.ones((2, 12), np.int32)
    mask[1, 9:] = 0
    inputs = Inputs(tokens[:, :12], target_mask=mask)
    llama, model = make_llama(num_hidden_layers=1), random_model(num_layers=1)
    return Pair(reference=llama, model=model, inputs=inputs, levels=("layers",))


@pytest.fixture(scope="module")
def recording(pair):
    return record_forward(pair)


def test_every_step_has_its_noise_and_the_logits_are_last(recording):
    assert list(recording.arrays)[-1] == LOGITS
    assert recording.floors.keys() == recording.forced_floors.keys() == recording.arrays.keys()
    assert all(0 < floor < 1e-5 for floor in recording.floors.values())
    assert 0 < recording.logits_noise < 1e-3
    assert recording.versions.keys() == {"torch", "transformers"}


def test_padding_is_left_out(recording):
    assert recording.arrays[LOGITS].shape == (2, 12, 96)
    assert recording.real(LOGITS).shape == (21, 96)
    other = np.zeros((2, 12, 7))
    assert recording.real("embed", other).shape == (21, 7)


def test_a_sample_is_the_same_numbers_of_both_sides(pair, recording):
    kept = record_forward(dataclasses.replace(pair, sample=Sample((0, 11), 5)))
    assert kept.arrays["embed"].shape == (3, 5)
    assert kept.arrays[LOGITS].shape == (3, 96)
    assert kept.forced_floors == {}
    again = kept.real("embed", recording.arrays["embed"])
    np.testing.assert_array_equal(kept.real("embed"), again)


def test_it_is_plain_data_and_back(recording):
    again = Recording.of_plain(plain(recording))
    for field in dataclasses.fields(Recording):
        if field.name not in ("inputs", "arrays", "routers"):
            assert getattr(again, field.name) == getattr(recording, field.name)
    np.testing.assert_array_equal(again.real(LOGITS), recording.real(LOGITS))
    sampled = dataclasses.replace(recording, sample=Sample((0, 3), 5))
    assert Recording.of_plain(plain(sampled)).sample == Sample((0, 3), 5)


def test_a_reference_without_the_modules_is_refused(pair):
    class Named(Alignment):
        names = ("model.nothing",)

    with pytest.raises(ValueError, match=r"the reference has no model\.nothing"):
        record(pair.reference, pair.inputs, Named(()))
