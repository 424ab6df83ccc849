"""Forward levels: every activation is judged, and the logits by position."""

import dataclasses

import chex
import numpy as np
import pytest
from broken_models import changed

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.levels.activations.forward import judge, record_forward
from jaxllm.interop.parity.levels.activations.stage import FORWARD
from jaxllm.interop.parity.levels.sides import Comparison, JaxSide
from jaxllm.interop.parity.recording.sample import Sample
from jaxllm.interop.parity.report.activation_rows import LOGITS

BOTH = ("layers", "logits")


@pytest.fixture(scope="module")
def sides(pair, short):
    llama, model = pair
    return Comparison(reference=llama, model=model, inputs=Inputs(short), levels=BOTH)


@pytest.fixture(scope="module")
def recording(sides):
    return record_forward(sides)


@pytest.mark.exhaustive
def test_a_correct_model_passes_at_every_activation(sides, recording):
    forward = judge(recording, sides.unstacked, BOTH)
    assert all(tap.ok for tap in forward.taps)
    assert [tap.path for tap in forward.outputs] == ["lm_head"]
    assert len(forward.activations) == len(forward.taps) - 1
    assert all(tap.forced is not None for tap in forward.taps)
    assert forward.details["flips"] == ()
    assert forward.details["versions"].keys() == {"torch", "transformers"}
    logits = forward.details["logits"]
    assert (logits.top1_agreement, logits.top1_unexplained) == (1.0, 0)
    assert logits.relative_l2 == forward.outputs[0].cumulative.relative_l2
    assert [bucket.tokens for bucket in forward.details["buckets"]] == [4, 28, 32]


def test_a_wrong_activation_is_the_only_one_with_a_hint(sides, recording):
    other = changed(sides.unstacked, "layers.1.mlp_norm.scale", lambda scale: scale + 1)
    taps = judge(recording, other, BOTH).taps
    assert [tap.path for tap in taps if tap.is_wrong_itself] == ["layers.1.mlp_norm"]
    hints = {tap.path: tap.hint for tap in taps if tap.hint}
    assert hints.keys() == {"layers.1.mlp_norm"}
    assert "the reference scales by one less" in hints["layers.1.mlp_norm"]


@pytest.mark.parametrize("padded", [False, True])
def test_a_sample_of_positions_gives_a_hint(sides, tokens, padded):
    mask_BT = np.ones((2, 64), np.int32)
    mask_BT[1, 24:] = 0
    inputs = Inputs(tokens[:, :64], target_mask=mask_BT if padded else None)
    sample = Sample((0, 9, 31, 63), 4096)
    recording = record_forward(dataclasses.replace(sides, inputs=inputs, sample=sample))
    other = changed(sides.unstacked, "layers.1.mlp_norm.scale", lambda scale: scale + 1)
    hints = {tap.path: tap.hint for tap in judge(recording, other, BOTH).taps if tap.hint}
    assert hints.keys() == {"layers.1.mlp_norm"}
    assert "the reference scales by one less" in hints["layers.1.mlp_norm"]
    assert not any(tap.hint for tap in judge(recording, sides.unstacked, BOTH).taps)


@pytest.mark.exhaustive
def test_a_hint_looks_only_at_rows_without_padding(sides, pair, tokens):
    mask_BT = np.ones((2, 64), np.int32)
    mask_BT[1, 24:] = 0
    inputs = Inputs(tokens[:, :64], target_mask=mask_BT)
    recording = record_forward(dataclasses.replace(sides, inputs=inputs))
    # At padding the two sides may compute anything.
    theirs = {path: np.array(array) for path, array in recording.arrays.items()}
    theirs["layers.1.mlp_norm"][1, 24:] *= -7
    recording = dataclasses.replace(recording, arrays=theirs)
    other = changed(sides.unstacked, "layers.1.mlp_norm.scale", lambda scale: scale + 1)
    hints = [tap.hint for tap in judge(recording, other, BOTH).taps if tap.hint]
    assert len(hints) == 1
    assert "the reference scales by one less" in hints[0]


def test_errors_are_distances_from_float64(sides, recording):
    """A model that computes what float64 gives has no error; the reference has its own."""
    [tap] = judge(recording, sides.unstacked, ("logits",)).outputs
    assert 0 < tap.cumulative.reference <= tap.cumulative.floor < tap.cumulative.threshold
    size, correction = recording.size(LOGITS), recording.free.corrections[LOGITS]
    assert recording.free.judge(LOGITS, correction, size).relative_l2 == 0
    same = recording.free.judge(LOGITS, 0 * correction, size)
    assert same.relative_l2 == pytest.approx(tap.cumulative.reference)


def test_the_logits_level_alone_records_no_activations(sides, recording):
    forward = judge(recording, sides.unstacked, ("logits",))
    assert (forward.activations, len(forward.outputs)) == ((), 1)
    assert forward.outputs[0].forced is None


def test_logits_of_another_shape_are_rejected(sides, recording):
    theirs = {**recording.arrays, LOGITS: recording.arrays[LOGITS][..., :-1]}
    narrow = dataclasses.replace(recording, arrays=theirs)
    message = r"logits have shape \(1, 64, 95\) in the reference, \(1, 64, 96\) in the model"
    with pytest.raises(ValueError, match=message):
        judge(narrow, sides.unstacked, ("logits",))


def test_a_sampled_recording_is_judged(sides):
    recorded = FORWARD.record(dataclasses.replace(sides, sample=Sample((0, 40, 63), 16)))
    chex.assert_shape(recorded["arrays"]["embed"], (3, 16))
    forward = FORWARD.check(recorded, JaxSide(model=sides.model, levels=BOTH))
    assert all(tap.ok and tap.forced is None for tap in forward.taps)
    assert FORWARD.details(forward)["tokens"] == 3


def test_a_recording_survives_the_round_trip_through_plain_data(sides, recording):
    ours = JaxSide(model=sides.model, levels=("logits",))
    [tap] = FORWARD.check(recording.to_pack(), ours).outputs
    [same] = judge(recording, sides.unstacked, ("logits",)).outputs
    assert tap.cumulative.threshold == pytest.approx(same.cumulative.threshold, rel=1e-6)
    assert tap.cumulative.relative_l2 == same.cumulative.relative_l2 > 0
    assert np.isfinite(tap.ulp_max)
