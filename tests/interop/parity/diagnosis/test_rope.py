"""Hints for wrong RoPE."""

import numpy as np
import pytest
from wrong_activations import B, H, N, T, drawn, hint

from jaxllm.interop.parity.diagnosis.rope import frequencies, rotate, rotation_factors, theta


def rotated(x_BTNH, layout="half", theta=1e4, start=0, rotated=H, times=1.0):
    """RoPE in float64 by complex numbers, independent of jaxllm's implementation."""
    frequencies = times * theta ** (-np.arange(rotated // 2) / (rotated // 2))
    angles = (np.arange(x_BTNH.shape[1]) + start)[:, None] * frequencies
    x = x_BTNH.astype(np.float64)
    first = x[..., : rotated // 2] if layout == "half" else x[..., 0:rotated:2]
    second = x[..., rotated // 2 : rotated] if layout == "half" else x[..., 1:rotated:2]
    z = (first + 1j * second) * np.exp(1j * angles)[:, None]
    parts = [z.real, z.imag]
    both = np.concatenate(parts, -1) if layout == "half" else np.stack(parts, -1)
    both = both.reshape(*x.shape[:-1], rotated)
    return np.concatenate([both, x[..., rotated:]], -1).astype(np.float32)


BEFORE = drawn(B, T, N, H)


ROTATIONS = {
    "half/interleaved RoPE": {"layout": "interleaved"},
    "a different theta: 10000 in the reference, 20000 in the model": {},
    "no RoPE in the reference": {"times": 0.0},
    "linear RoPE scaling: the reference rotates 0.25 times as fast": {"times": 0.25},
    "shifted positions: the reference's are +1 from the model's": {"start": 1},
    "a different rotary fraction: the reference rotates 4 elements of a head": {"rotated": 4},
}


@pytest.mark.parametrize(("words", "changes"), ROTATIONS.items(), ids=ROTATIONS)
def test_wrong_rotations_are_recognized(words, changes):
    ours = rotated(BEFORE, theta=2e4 if "theta" in words else 1e4)
    theirs = rotated(BEFORE, **changes)
    found = hint("layers.1.attn.q", ours, theirs, reference={"layers.1.attn.q_proj": BEFORE})
    assert words in found


def test_missing_rope_in_the_model_is_recognized():
    found = hint(
        *("layers.0.attn.k", BEFORE, rotated(BEFORE)),
        reference={"layers.0.attn.k_proj": BEFORE},
    )
    assert "no RoPE in the model" in found


def test_a_further_rotation_is_recognized_if_the_projection_differs():
    given = {"layers.0.attn.q_proj": drawn(B, T, N, H, seed=9)}
    ours, growth = rotated(BEFORE), (1 + 0.1 * np.arange(T, dtype=np.float32))[:, None, None]
    assert "angles" in hint("layers.0.attn.q", ours, rotated(BEFORE, theta=50.0), reference=given)
    assert "temperature" in hint("layers.0.attn.q", ours, ours * growth, reference=given)


def test_a_missing_norm_of_queries_is_recognized():
    scale = 1 + 0.3 * drawn(H)
    normed = BEFORE / np.sqrt(np.square(BEFORE).mean(-1, keepdims=True) + 1e-6) * scale
    found = hint(
        *("layers.0.attn.q", rotated(BEFORE), rotated(normed)),
        reference={"layers.0.attn.q_proj": BEFORE},
        weights={"layers.0.attn.q_norm.scale": scale},
    )
    assert "missing norm of queries and keys" in found


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_a_rotation_is_measured_and_reproduced(layout):
    after = rotated(BEFORE, layout, theta=500.0)
    found = rotation_factors(BEFORE, after, layout)
    np.testing.assert_allclose(rotate(BEFORE, found, layout), after, atol=1e-5)
    assert theta(frequencies(found)) == pytest.approx(500, rel=1e-3)
