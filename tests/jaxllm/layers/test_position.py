"""RoPE against complex numbers, and its frequencies against those of transformers."""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import relative_l2
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from jaxllm.config import RopeScaling
from jaxllm.layers.position import Rotation, apply_rope, rope_frequencies

TOLERANCE = 1e-6  # relative L2, float32
FAR = 131071
POSITIONS = np.array([0, 1, 2, 255, 256, 257, 4095, 8191, 65535, 100003, FAR - 1, FAR])
THETAS = [1e4, 5e5, 1e6]

LINEAR = {
    f"linear{factor}": RopeScaling(kind="linear", factor=factor) for factor in (1.0, 4.0, 3.3)
}
LLAMA3 = {
    f"llama3-{factor}-{low}-{high}-{length}": RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_len=length,
    )
    for factor, low, high, length in [
        (8.0, 1.0, 4.0, 8192),
        (32.0, 1.0, 4.0, 8192),
        (4.0, 0.5, 7.0, 8192),
        (8.0, 2.0, 3.0, 64),
        (16.0, 1.0, 1.0, 8192),
    ]
}
PLAIN = {"plain": None}
SCALINGS = PLAIN | LINEAR | LLAMA3


def scalings(*kinds: dict) -> pytest.MarkDecorator:
    """Parametrises over scalings, each under its name."""
    named = {name: scaling for kind in kinds for name, scaling in kind.items()}
    return pytest.mark.parametrize("scaling", [pytest.param(s, id=n) for n, s in named.items()])


def theirs(head_dim: int, theta: float, scaling: RopeScaling | None) -> LlamaRotaryEmbedding:
    """The module of transformers for the same settings."""
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_len,
        }
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=rope,
    )
    return LlamaRotaryEmbedding(config)


def inv_freq(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    return theirs(head_dim, theta, scaling).inv_freq.numpy()


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """How many float32 numbers apart."""
    assert a.dtype == b.dtype == np.float32
    return int(np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32)).max())


def rotated(x_BTNH: np.ndarray, positions_BT: np.ndarray, frequencies, layout: str) -> np.ndarray:
    """Each pair as a complex number times e^(i position frequency), in float64."""
    # The angle itself is a float32, as in every PyTorch original.
    angles = positions_BT[..., None].astype(np.float32) * frequencies
    turn = np.exp(1j * angles.astype(np.float64))[:, :, None, :]
    half = x_BTNH.shape[-1] // 2
    x = x_BTNH.astype(np.float64)
    if layout == "half":
        out = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([out.real, out.imag], -1)
    out = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([out.real, out.imag], -1).reshape(x.shape)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def grid(head_dims: list[int]) -> Iterator[tuple[int, float]]:
    return itertools.product(head_dims, THETAS)


def test_frequencies_are_powers_of_theta():
    for head_dim, theta in grid([2, 16, 64, 80, 128, 256]):
        exact = theta ** -(np.arange(0, head_dim, 2) / head_dim)
        frequencies = rope_frequencies(head_dim, theta, None)
        assert frequencies.dtype == np.float32
        np.testing.assert_allclose(frequencies, exact, rtol=1e-6)
        assert frequencies[0] == 1


@scalings(PLAIN, {"linear4.0": LINEAR["linear4.0"]})
def test_frequencies_are_those_of_transformers_to_the_last_bit_but_one(scaling):
    """At position 131071 each unit in the last place is a hundredth of a radian."""
    apart = {}
    for head_dim, theta in grid([16, 64, 80, 96, 128, 256]):
        ours = rope_frequencies(head_dim, theta, scaling)
        apart[head_dim, theta] = ulps(ours, inv_freq(head_dim, theta, scaling))
    assert max(apart.values()) <= 1, apart


@scalings(LINEAR, LLAMA3)
def test_scaled_frequencies_are_those_of_transformers(scaling):
    for head_dim, theta in grid([64, 80, 128]):
        frequencies = rope_frequencies(head_dim, theta, scaling)
        # A division rounds; the blend subtracts nearly equal numbers, so an error grows.
        np.testing.assert_allclose(frequencies, inv_freq(head_dim, theta, scaling), rtol=2e-6)
        assert frequencies.dtype == np.float32


def test_the_grid_reaches_every_branch_of_llama3():
    for scaling in LLAMA3.values():
        ratio = rope_frequencies(128, 5e5, None) / rope_frequencies(128, 5e5, scaling)
        kept, divided = np.isclose(ratio, 1), np.isclose(ratio, scaling.factor)
        assert kept.any()
        assert divided.any()
        has_band = scaling.high_freq_factor > scaling.low_freq_factor
        assert (~kept & ~divided).any() == has_band


def test_without_a_band_between_them_frequencies_are_kept_or_divided():
    """`high_freq_factor == low_freq_factor`, as in Llama 4 Scout: nothing to blend, no 0/0."""
    scaling = RopeScaling(kind="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0)
    plain = rope_frequencies(128, 5e5, None)
    expected = np.where(2 * math.pi / plain > 8192, plain / np.float32(16), plain)
    np.testing.assert_array_equal(rope_frequencies(128, 5e5, scaling), expected)
    assert 0 < (expected != plain).sum() < plain.size


def test_a_wavelength_on_the_boundary_is_finite():
    """With theta 1 every wavelength is 2 pi; here that is the boundary itself."""
    wavelength = float(2 * np.pi / np.float32(1))
    scaling = RopeScaling(
        kind="llama3",
        factor=16.0,
        low_freq_factor=6 / wavelength,
        high_freq_factor=6 / wavelength,
        original_max_len=6,
    )
    assert np.isin(rope_frequencies(8, 1.0, scaling), np.float32([1, 1 / 16])).all()


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@scalings(SCALINGS)
def test_rotation_is_multiplication_of_complex_numbers(layout, scaling):
    positions_BT = np.stack([POSITIONS, POSITIONS[::-1]])
    x_BTNH = draw(2, POSITIONS.size, 3, 16)
    for theta in THETAS:
        frequencies = rope_frequencies(16, theta, scaling)
        ours = apply_rope(
            jnp.asarray(x_BTNH), jnp.asarray(positions_BT), Rotation(frequencies, layout)
        )
        assert relative_l2(ours, rotated(x_BTNH, positions_BT, frequencies, layout)) < TOLERANCE


@pytest.mark.parametrize(
    ("head_dim", "theta"), [(64, 1e4), (64, 5e5), (128, 1e4), (128, 5e5), (64, 1e6)]
)
@scalings(PLAIN, {"linear4.0": LINEAR["linear4.0"]})
def test_rotation_is_that_of_transformers_up_to_position_131071(head_dim, theta, scaling):
    q_BTNH, k_BTKH = np.split(draw(2, POSITIONS.size, 6, head_dim), [4], axis=2)
    positions_BT = np.stack([POSITIONS, POSITIONS[::-1]])
    rotary = theirs(head_dim, theta, scaling)
    cos, sin = rotary(torch.zeros(()), torch.tensor(positions_BT))
    expected = apply_rotary_pos_emb(
        torch.tensor(q_BTNH), torch.tensor(k_BTKH), cos, sin, unsqueeze_dim=2
    )
    frequencies = rope_frequencies(head_dim, theta, scaling)
    for x, reference in zip((q_BTNH, k_BTKH), expected, strict=True):
        ours = apply_rope(jnp.asarray(x), jnp.asarray(positions_BT), Rotation(frequencies, "half"))
        assert relative_l2(ours, reference) < TOLERANCE


def test_the_layouts_are_each_other_s_permutation():
    frequencies = rope_frequencies(16, 1e4, None)
    x_BTNH, positions_BT = jnp.asarray(draw(1, 9, 2, 16)), jnp.arange(9)[None]
    order = np.arange(16).reshape(2, 8).T.ravel()  # interleaved element e is half element order[e]
    half = apply_rope(x_BTNH, positions_BT, Rotation(frequencies, "half"))
    interleaved = apply_rope(x_BTNH[..., order], positions_BT, Rotation(frequencies, "interleaved"))
    np.testing.assert_array_equal(half[..., order], interleaved)
    assert not np.array_equal(
        half, apply_rope(x_BTNH, positions_BT, Rotation(frequencies, "interleaved"))
    )


@jax.jit
def rotate(x_BTNH: jax.Array, positions_BT: jax.Array) -> jax.Array:
    return apply_rope(x_BTNH, positions_BT, Rotation(rope_frequencies(32, 1e4, None), "half"))


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_score_depends_on_the_distance_alone(query, key, shift):
    q, k = np.split(draw(1, 2, 1, 32), 2, axis=1)

    def score(query: int, key: int) -> float:
        return float((rotate(q, jnp.array([[query]])) * rotate(k, jnp.array([[key]]))).sum())

    assert score(query, key) == pytest.approx(score(query + shift, key + shift), abs=5e-3)


def test_positions_are_exact_where_activations_are_bfloat16():
    """bfloat16 itself cannot tell 257 from 256."""
    x_BTNH = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    out = apply_rope(
        x_BTNH, jnp.array([[256, 257]]), Rotation(rope_frequencies(4, 1e4, None), "half")
    )
    assert out.dtype == jnp.bfloat16
    exact = rotated(
        np.ones((1, 2, 1, 4)), np.array([[256, 257]]), rope_frequencies(4, 1e4, None), "half"
    )
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, atol=1e-2)
    assert not np.array_equal(out[:, 0], out[:, 1])
