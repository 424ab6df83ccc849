"""Rows of a sampled recording: both sides at the kept positions of rows without padding."""

import numpy as np
import pytest

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.recording.recording import Recording
from jaxllm.interop.parity.recording.sample import Sample
from jaxllm.interop.parity.recording.sampled_rows import ModelRows, ReferenceRows

POSITIONS = (0, 2, 5)
B, T = 3, 6


@pytest.fixture
def ours() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (B, T, 2, 4), "wide": (B, T, 40), "pooled": (B, 7)}
    return {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}


@pytest.mark.parametrize("padded", [None, 1])
def test_both_sides_have_the_kept_positions_of_whole_rows(ours, padded):
    mask_BT = np.ones((B, T), np.int32)
    if padded is not None:
        mask_BT[padded, 3:] = 0
    inputs = Inputs(np.ones((B, T), np.int32), target_mask=None if padded is None else mask_BT)
    sample, mask = Sample(POSITIONS, 8), inputs.target_mask
    theirs = {path: -array for path, array in ours.items()}
    kept = {path: sample.of(x, (B, T), mask, whole=False) for path, x in theirs.items()}
    recording = Recording(inputs, kept, {}, sample=sample)
    rows = [row for row in range(B) if row != padded]
    model, reference = ModelRows(recording, ours), ReferenceRows(recording, ours)
    assert list(model) == list(reference) == ["q"]  # of "wide", only 8 elements are kept
    expected = ours["q"][rows][:, list(POSITIONS)]
    np.testing.assert_array_equal(model["q"], expected)
    np.testing.assert_array_equal(reference["q"], -expected)
    assert reference.get("wide") is None


def test_nothing_is_left_if_every_row_is_padded(ours):
    mask_BT = np.ones((B, T), np.int32)
    mask_BT[:, -1] = 0
    inputs = Inputs(np.ones((B, T), np.int32), target_mask=mask_BT)
    sample = Sample(POSITIONS, 8)
    kept = {"q": sample.of(ours["q"], (B, T), mask_BT, whole=False)}
    assert not ModelRows(Recording(inputs, kept, {}, sample=sample), ours)
