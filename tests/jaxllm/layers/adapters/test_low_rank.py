"""LoRA's factors: letters, the product with and without dropout, and how they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import relative_l2

from jaxllm.layers.adapters.low_rank import LowRank, draw_factor, factor_dims, summed_dims

SIZES = {"B": 2, "T": 5, "D": 6, "N": 3, "H": 4, "R": 2, "E": 3, "F": 7}


def drawn(dims: str, seed: int) -> np.ndarray:
    shape = [SIZES[letter] for letter in dims]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("equation", "summed", "factors"),
    [
        ("BTD,DNH->BTNH", "D", ("DR", "RNH")),
        ("BTNH,NHD->BTD", "NH", ("NHR", "RD")),
        ("ED,EDF->EF", "D", ("EDR", "ERF")),
    ],
)
def test_letters_of_the_factors(equation, summed, factors):
    assert summed_dims(equation) == summed
    assert factor_dims(equation) == factors


@pytest.mark.parametrize("equation", ["BTD,DNH->BTNH", "BTNH,NHD->BTD"])
def test_the_sum_beside_a_kernel_is_that_of_its_delta(equation):
    x_dims, dims, _ = equation.replace("->", ",").split(",")
    a, b = (drawn(letters, seed) for seed, letters in enumerate(factor_dims(equation)))
    x, kernel = drawn(x_dims, 2), drawn(dims, 3)
    low_rank = LowRank(equation, jnp.asarray(a), jnp.asarray(b), scale=0.7, rate=0.0)
    beside = np.einsum(equation, x, kernel) + np.asarray(low_rank(x))
    merged = np.asarray(kernel + low_rank.delta(), np.float64)
    # Elements of the sum may cancel, so that their own relative errors have no bound.
    assert relative_l2(beside, np.einsum(equation, x.astype(np.float64), merged)) < 1e-6


def test_dropout_leaves_out_elements_of_the_input():
    a, b, x = drawn("DR", 0), drawn("RF", 1), np.ones((2, 5, 6), np.float32)
    low_rank = LowRank("BTD,DF->BTF", jnp.asarray(a), jnp.asarray(b), scale=2.0, rate=0.25)
    whole = np.asarray(low_rank(x))
    low_rank.key = jax.random.key(3)
    kept = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.75, x.shape))
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(low_rank(x), 2 * (kept / 0.75) @ a @ b, rtol=2e-5)
    np.testing.assert_allclose(whole, 2 * x @ a @ b, rtol=2e-5)


def test_factors_are_drawn_as_peft_draws_them():
    """`a` uniform within 1 / sqrt(inputs), which is kaiming_uniform_(a=sqrt(5)); `b` zero."""
    a = np.asarray(draw_factor(jax.random.key(0), (3, 20, 16, 8), "ENHR"[-3:]))
    bound = 1 / np.sqrt(20 * 16)
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert not np.any(draw_factor(jax.random.key(0), (8, 5), "RD"))
