"""Matmuls in 8-bit floats: rounded as ml_dtypes rounds, with a scale for each row and column."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny import relative_l2

from jaxllm.errors import MissingPackageError
from jaxllm.numerics.float8 import FORWARD, GRADIENT, check_qwix, float8_einsum

RNG = np.random.default_rng(0)


def rounded(x: np.ndarray, axis: int, dtype: type) -> np.ndarray:
    """Rounds along an axis to 8 bits, in NumPy: the largest magnitude becomes the format's."""
    largest = np.abs(x).max(axis, keepdims=True).astype(np.float32)
    scale = np.where(largest == 0, 1, largest / np.float32(ml_dtypes.finfo(dtype).max))
    return (x / scale).astype(dtype).astype(np.float32) * scale


@pytest.mark.parametrize(
    ("formats", "types"),
    [
        ((FORWARD, FORWARD), (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fn)),
        ((GRADIENT, FORWARD), (ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn)),
    ],
)
def test_rows_and_columns_have_their_own_scales(formats, types):
    """Rows whose magnitudes differ by 1e6 keep the same relative precision."""
    x = RNG.standard_normal((5, 64)).astype(np.float32) * 10.0 ** np.arange(-3, 2)[:, None]
    y = RNG.standard_normal((64, 7)).astype(np.float32) * 10.0 ** np.arange(-3, 4)
    x[2] = 0
    found = np.asarray(float8_einsum("BD,DF->BF", x, y, formats=formats))
    expected = rounded(x, 1, types[0]) @ rounded(y, 0, types[1])
    for row in (0, 1, 3, 4):
        assert relative_l2(found[row], expected[row]) < 1e-6
        columns = np.linalg.norm(y, axis=0)
        most = 0.08 if GRADIENT in formats else 0.05
        assert relative_l2(found[row] / columns, x[row] @ y / columns) < most
    assert not found[2].any()
    assert found.dtype == np.float32


def test_products_of_heads_are_scaled_over_what_is_summed():
    x = RNG.standard_normal((2, 3, 4, 8)).astype(np.float32)
    kernel = RNG.standard_normal((4, 8, 6)).astype(np.float32)
    found = float8_einsum("BTNH,NHD->BTD", x, kernel)
    flat = rounded(x.reshape(6, 32), 1, ml_dtypes.float8_e4m3fn)
    expected = flat @ rounded(kernel.reshape(32, 6), 0, ml_dtypes.float8_e4m3fn)
    assert relative_l2(np.asarray(found).reshape(6, 6), expected) < 1e-6


def test_a_nan_stays_one():
    x = jnp.ones((2, 4)).at[0, 1].set(jnp.nan)
    found = float8_einsum("BD,DF->BF", x, jnp.ones((4, 3)))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


def test_the_program_multiplies_8_bit_floats():
    text = jax.jit(lambda x, y: float8_einsum("BD,DF->BF", x, y)).lower(
        jnp.ones((2, 4)), jnp.ones((4, 3))
    )
    assert "dot_general" in text.as_text()
    (line,) = [line for line in text.as_text().splitlines() if "dot_general" in line]
    assert line.count("f8E4M3FN") == 2


def test_qwix_must_be_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'jaxllm\[float8\]'"):
        check_qwix()
