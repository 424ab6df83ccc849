"""Hints for any activation: a scale, a bias, a shift, rounding, a soft cap, a few tokens."""

import numpy as np
import pytest
from wrong_activations import B, D, H, N, T, drawn, half, hint

from jaxllm.interop.parity.diagnosis.arrays import named_ratio

OURS, PATH = drawn(B, T, D) @ drawn(D, D), "layers.0.attn.o_proj"
HEADS = {"layers.0.attn.q": drawn(B, T, N, H)}
CHANGES = {
    "missing or different bias": OURS + drawn(D),
    "rounding to bfloat16 in the reference": half(OURS),
    "shift by one position: the model is late": np.roll(OURS, -1, axis=1),
    "soft cap: the reference is capped at 2": 2 * np.tanh(OURS / 2),
    "scale: the reference's is 3 times the model's": 3 * OURS,
    "scaled by a factor of its own": OURS * (2 + drawn(B, T, 1)),
}


@pytest.mark.parametrize(("words", "theirs"), CHANGES.items(), ids=CHANGES)
def test_a_change_of_all_numbers_is_recognized(words, theirs):
    assert words in hint(PATH, OURS, theirs)


def test_a_scale_is_named_by_the_sizes_of_the_model():
    given = {"embed": D * OURS, **HEADS}
    assert "(embed_dim)" in hint("embed", OURS, D * OURS, reference=given)
    assert "1 / sqrt(head_dim)" in hint(PATH, OURS, OURS / np.sqrt(H), reference=HEADS)
    assert named_ratio(2.0, {"embed_dim": 16, "head_dim": 4}) == " (sqrt(head_dim))"
    assert named_ratio(1.5, {"embed_dim": 16}) == ""


def test_a_few_tokens_are_named():
    theirs = OURS.copy()
    theirs[1, 7] += 1
    assert "Only 1 of 48 tokens differ: (row, position) (1, 7)" in hint(PATH, OURS, theirs)
    found = hint(PATH, OURS[1:], theirs[1:], rows=[4])  # of a batch whose other rows are padded
    assert "Only 1 of 24 tokens differ: (row, position) (4, 7)" in found


def test_unrelated_numbers_give_no_hint():
    assert hint(PATH, OURS, drawn(B, T, D, seed=5)) is None
