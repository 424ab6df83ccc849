"""RoPE equals multiplication by complex numbers; its frequencies equal those of transformers."""

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
from tiers import examples
from tiny import relative_l2
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from jaxllm.config import ROPE_SCALINGS, RopeScaling
from jaxllm.layers.attention.rope import Rotation, apply_rope, attention_factor, rope_frequencies

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
YARN = {
    "yarn": RopeScaling(kind="yarn", factor=4.0, original_max_len=4096),
    "yarn-1": RopeScaling(kind="yarn", factor=1.0, original_max_len=4096),
    "yarn-sharp": RopeScaling(
        kind="yarn", factor=16.0, original_max_len=2048, beta_fast=9.0, beta_slow=2.5
    ),
    "yarn-untruncated": RopeScaling(
        kind="yarn", factor=3.3, original_max_len=32768, truncate=False, attention_factor=0.77
    ),
    "yarn-no-band": RopeScaling(
        kind="yarn", factor=8.0, original_max_len=512, beta_fast=2.0, beta_slow=2.0, truncate=False
    ),
}
DYNAMIC = {
    "dynamic": RopeScaling(kind="dynamic", factor=4.0, original_max_len=2048),
    "dynamic-1": RopeScaling(kind="dynamic", factor=1.0, original_max_len=1000),
}
PLAIN = {"plain": None}
SCALINGS = PLAIN | LINEAR | LLAMA3 | YARN
LENGTHS = [1, 511, 512, 513, 2048, 2049, 4097, 65536, 131072]


def longrope(head_dim: int, **fields: object) -> RopeScaling:
    """A LongRoPE scaling with random factors, different for short and long sequences."""
    factors = 1 + np.random.default_rng(head_dim).random((2, head_dim // 2)) * [[0.5], [30]]
    short, long = (tuple(row) for row in factors.tolist())
    return RopeScaling(
        kind="longrope",
        **{"factor": 32.0, "original_max_len": 4096, **fields},
        short_factor=short,
        long_factor=long,
    )


def scalings(*kinds: dict) -> pytest.MarkDecorator:
    """Parametrizes a test over scalings, with their kinds as ids."""
    named = {name: scaling for kind in kinds for name, scaling in kind.items()}
    return pytest.mark.parametrize("scaling", named.values(), ids=named)


def theirs(head_dim: int, theta: float, scaling: RopeScaling | None) -> LlamaRotaryEmbedding:
    """The rotary module of transformers with the same settings."""
    return LlamaRotaryEmbedding(their_config(head_dim, theta, scaling))


def their_config(head_dim: int, theta: float, scaling: RopeScaling | None) -> LlamaConfig:
    rope, length = {"rope_type": "default", "rope_theta": theta}, 131072
    if scaling is not None:
        fields = {name: getattr(scaling, name) for name in ROPE_SCALINGS[scaling.kind]}
        original = fields.pop("original_max_len", None)
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        rope |= {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        if scaling.kind == "dynamic":  # transformers reads it from max_position_embeddings
            length = original
        elif original is not None:
            rope["original_max_position_embeddings"] = original
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_parameters=rope,
    )


def inv_freq(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    return theirs(head_dim, theta, scaling).inv_freq.numpy()


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """The largest distance of two elements, in units in the last place."""
    assert a.dtype == b.dtype == np.float32
    return int(np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32)).max())


def rotated(x_BTNH: np.ndarray, positions_BT: np.ndarray, frequencies, layout: str) -> np.ndarray:
    """Multiplies each pair, as a complex number, by e^(i position frequency), in float64."""
    # The angle itself is float32, as in every PyTorch original.
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
def test_frequencies_match_transformers_within_one_ulp(scaling):
    """At position 131071, one unit in the last place is a hundredth of a radian."""
    apart = {}
    for head_dim, theta in grid([16, 64, 80, 96, 128, 256]):
        ours = rope_frequencies(head_dim, theta, scaling)
        apart[head_dim, theta] = ulps(ours, inv_freq(head_dim, theta, scaling))
    assert max(apart.values()) <= 1, apart


@scalings(LINEAR, LLAMA3)
def test_scaled_frequencies_match_transformers(scaling):
    for head_dim, theta in grid([64, 80, 128]):
        frequencies = rope_frequencies(head_dim, theta, scaling)
        # Division rounds, and the blend subtracts nearly equal numbers, which amplifies errors.
        np.testing.assert_allclose(frequencies, inv_freq(head_dim, theta, scaling), rtol=2e-6)
        assert frequencies.dtype == np.float32


@scalings(YARN)
def test_yarn_matches_transformers(scaling):
    """Bit for bit, except for the powers of theta, which PyTorch rounds to within one unit."""
    for head_dim, theta in grid([16, 64, 80, 128]):
        config = their_config(head_dim, theta, scaling)
        expected, factor = ROPE_INIT_FUNCTIONS["yarn"](config)
        assert attention_factor(scaling) == factor
        # The blend subtracts no nearly equal numbers, but may add two that are each one unit off.
        assert ulps(rope_frequencies(head_dim, theta, scaling), expected.numpy()) <= 2


@pytest.mark.parametrize(
    "changes", examples([{}, {"attention_factor": 1.3}, {"factor": 1.0}], {"attention_factor": 1.3})
)
def test_longrope_matches_transformers(changes):
    """Within one unit in the last place, by which PyTorch's powers of theta are sometimes off."""
    for head_dim, theta in grid([16, 64, 96, 128]):
        scaling = longrope(head_dim, **changes)
        for length in (1, 4096, 4097, 131072):
            config = their_config(head_dim, theta, scaling)
            expected, factor = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)
            assert attention_factor(scaling) == factor
            ours = frequencies_at(head_dim, theta, scaling, length)
            assert ulps(ours, expected.numpy()) <= 1, (head_dim, theta, length)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", examples(DYNAMIC, "dynamic"))
def test_dynamic_matches_transformers(kind):
    """The growth, its power and the product are each rounded, on the device and in PyTorch.

    Against float64, ours are up to 4 units off, and those of transformers up to 3.
    """
    scaling = DYNAMIC[kind]
    for head_dim, theta in grid([16, 64, 80, 128]):
        config = their_config(head_dim, theta, scaling)
        for length in LENGTHS:
            expected, factor = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=length)
            assert attention_factor(scaling) == factor == 1
            ours = frequencies_at(head_dim, theta, scaling, length)
            assert ulps(ours, expected.numpy()) <= 5, (head_dim, theta, length)
            if length <= scaling.original_max_len:
                np.testing.assert_array_equal(ours, rope_frequencies(head_dim, theta, None))


def frequencies_at(head_dim: int, theta: float, scaling: RopeScaling, length: int) -> np.ndarray:
    """Frequencies for a sequence of this length: its angles at position 1."""
    rotation = Rotation.with_scaling(head_dim, theta, scaling, "half")
    assert rotation.at_length is not None
    return np.asarray(jax.jit(rotation.at_length)(np.array([[[[length]]]])))[0, 0, 0]


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(kind="dynamic", factor=4.0, original_max_len=64),
        longrope(64, original_max_len=64),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_each_row_has_the_frequencies_of_its_length_without_padding(scaling):
    """A long row, a short row, and a row that is short because of padding at position -1."""
    positions_BT = np.array([[1, 2, 64], [1, 2, 63], [1, 2, -1]])
    x_BTNH = draw(3, 3, 2, 64)
    rotation = Rotation.with_scaling(64, 1e4, scaling, "half")
    ours = np.asarray(apply_rope(jnp.asarray(x_BTNH), jnp.asarray(positions_BT), rotation))
    for row, positions in enumerate(positions_BT):
        rotary = theirs(64, 1e4, scaling)
        cos, sin = rotary(torch.zeros(()), torch.tensor(positions)[None])
        x = torch.tensor(x_BTNH[row : row + 1])
        expected, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
        assert relative_l2(ours[row : row + 1], expected) < TOLERANCE
    assert relative_l2(ours[0, :2], rotated_alone(x_BTNH[0, :2], rotation)) > 1e-3
    assert relative_l2(ours[1, :2], rotated_alone(x_BTNH[1, :2], rotation)) == 0


def rotated_alone(x_TNH: np.ndarray, rotation: Rotation) -> np.ndarray:
    """Rotates the vectors at positions 1 and 2 of a sequence of only these."""
    return np.asarray(apply_rope(jnp.asarray(x_TNH)[None], jnp.array([[1, 2]]), rotation))[0]


@scalings(YARN)
def test_cosines_and_sines_are_multiplied_by_the_attention_factor(scaling):
    positions_BT = POSITIONS[None]
    x_BTNH = draw(1, POSITIONS.size, 3, 64)
    cos, sin = theirs(64, 1e4, scaling)(torch.zeros(()), torch.tensor(positions_BT))
    x = torch.tensor(x_BTNH)
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    rotation = Rotation.with_scaling(64, 1e4, scaling, "half")
    ours = apply_rope(jnp.asarray(x_BTNH), jnp.asarray(positions_BT), rotation)
    assert relative_l2(ours, expected) < TOLERANCE
    norm = np.linalg.norm(np.asarray(ours)) / np.linalg.norm(x_BTNH)
    assert norm == pytest.approx(attention_factor(scaling), rel=1e-6)


def test_grid_covers_every_branch_of_llama3():
    for scaling in LLAMA3.values():
        ratio = rope_frequencies(128, 5e5, None) / rope_frequencies(128, 5e5, scaling)
        kept, divided = np.isclose(ratio, 1), np.isclose(ratio, scaling.factor)
        assert kept.any()
        assert divided.any()
        has_band = scaling.high_freq_factor > scaling.low_freq_factor
        assert (~kept & ~divided).any() == has_band


def test_llama3_without_a_blend_keeps_or_divides_frequencies():
    """`high_freq_factor == low_freq_factor`, as in Llama 4 Scout: no blend, and no 0/0."""
    scaling = RopeScaling(kind="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0)
    plain = rope_frequencies(128, 5e5, None)
    expected = np.where(2 * math.pi / plain > 8192, plain / np.float32(16), plain)
    np.testing.assert_array_equal(rope_frequencies(128, 5e5, scaling), expected)
    assert 0 < (expected != plain).sum() < plain.size


def test_wavelength_on_the_boundary_gives_finite_frequency():
    """With theta 1, every wavelength is 2 pi, here exactly the boundary."""
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
def test_rotation_is_complex_multiplication(layout, scaling):
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
def test_rotation_matches_transformers_up_to_position_131071(head_dim, theta, scaling):
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


def test_layouts_are_permutations_of_each_other():
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
def test_score_depends_only_on_distance(query, key, shift):
    q, k = np.split(draw(1, 2, 1, 32), 2, axis=1)

    def score(query: int, key: int) -> float:
        return float((rotate(q, jnp.array([[query]])) * rotate(k, jnp.array([[key]]))).sum())

    assert score(query, key) == pytest.approx(score(query + shift, key + shift), abs=5e-3)


def test_positions_are_exact_with_bfloat16_activations():
    """bfloat16 cannot represent 257."""
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
