"""Simulated rounding: errors of the size that float32 may have, forward and backward."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from jaxllm.interop.parity.execution.simulated_rounding import simulated_rounding
from jaxllm.interop.parity.numerics.precision import FLOAT32, PRECISIONS

UNIT_ROUNDOFF = FLOAT32.unit_roundoff


def error(function, *args, draws=10) -> float:
    """RMS over draws of the difference that the context makes, in units of roundoff."""
    plain = function(*args).double()
    found = []
    for seed in range(draws):
        with simulated_rounding(seed):
            found.append((function(*args).double() - plain).square().mean())
    return float(torch.stack(found).mean().sqrt()) / UNIT_ROUNDOFF


def sequential(terms: np.ndarray) -> np.ndarray:
    """Sums of the rows, added one by one in float32."""
    return np.cumsum(terms.astype(np.float32), axis=1, dtype=np.float32)[:, -1]


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("k", [30, 3000])
def test_the_error_of_a_sum_is_that_of_adding_one_by_one(k, mean):
    """Uniform errors within a roundoff bound real ones, of which they are at most three times."""
    rng = np.random.default_rng(0)
    terms = (rng.standard_normal((400, k)) + mean).astype(np.float32)
    real = sequential(terms) - terms.astype(np.float64).sum(axis=1)
    real = float(np.sqrt(np.square(real).mean())) / UNIT_ROUNDOFF
    simulated = error(lambda x: x.sum(1), torch.tensor(terms))
    assert real < simulated < 3 * real


def test_the_error_of_a_product_is_that_of_its_sum():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 700), (700, 30)))
    terms = (a[:, None] * b.T[None]).reshape(-1, 700)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    real = np.sqrt(np.square(sequential(terms) - exact.ravel()).mean()) / UNIT_ROUNDOFF
    simulated = error(torch.matmul, torch.tensor(a), torch.tensor(b))
    assert real < simulated < 3 * real


def test_cancellation_in_a_product_is_seen():
    """Two large terms that cancel leave their rounding error, whatever the result."""
    small = torch.full((1, 2), 1e-3)
    large = torch.tensor([[1e3, -1e3]])
    ones = torch.ones(2, 1)
    assert error(torch.matmul, large, ones) > 1e5 * error(torch.matmul, small, ones)


@pytest.mark.parametrize("dim", [None, 1])
def test_the_error_of_a_norm_is_half_that_of_its_sum_of_squares(dim):
    x = torch.randn(30, 4000)
    norms = error(lambda x: torch.linalg.vector_norm(x, dim=dim) / x.norm(dim=dim), x)
    sums = error(lambda x: x.square().sum(dim) / x.square().sum(dim), x)
    assert 0.3 * sums < norms < 0.7 * sums


def test_zeros_and_counts_have_no_error():
    zeros = torch.zeros(20)
    assert error(torch.linalg.vector_norm, zeros) == error(torch.sum, zeros) == 0
    assert error(lambda x: (x == 0).sum(dtype=torch.float32), zeros) == 0


def test_exact_operations_do_not_round():
    x = torch.randn(50, 50)
    for function in (torch.neg, torch.relu, torch.t, lambda x: x[:, 3:], lambda x: x.max(1)[0]):
        assert error(function, x) == 0


def test_gradients_round_as_well():
    torch.manual_seed(0)
    weight, x = torch.randn(20, 300), torch.randn(64, 300)

    def gradient(dtype=torch.float32):
        w = weight.to(dtype, copy=True).requires_grad_()
        functional.silu(functional.linear(x.to(dtype), w)).square().sum().backward()
        return w.grad.double()

    def simulated(seed):
        with simulated_rounding(seed):
            return gradient()

    truth = gradient(torch.float64)
    one, other = (simulated(seed) - truth for seed in (0, 1))
    assert 1e-8 < float(one.norm() / truth.norm()) < 1e-5
    assert abs(float((one * other).sum() / one.norm() / other.norm())) < 0.2
    assert torch.equal(simulated(3), simulated(3))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.softmax(x, -1),
        lambda x: functional.log_softmax(x, -1),
        lambda x: functional.layer_norm(x, (60,)),
        lambda x: functional.mse_loss(x, 2 * x),
    ],
    ids=["softmax", "log_softmax", "layer_norm", "mse_loss"],
)
def test_functions_of_several_operations_round_and_stay_correct(function):
    x = 5 * torch.randn(30, 60)
    found = error(function, x)
    assert found > 0
    with simulated_rounding(0):
        torch.testing.assert_close(function(x), function(x.double()).float(), rtol=2e-5, atol=1e-5)


def test_masked_scores_stay_finite():
    """A masked score is the smallest float, from which rounding must not make minus infinity."""
    scores = torch.full((4, 6), torch.finfo(torch.float32).min)
    with simulated_rounding(0):
        masked = scores + 0.5 * scores.sign() * 0 - 1.0
        assert masked.isfinite().all()
        assert functional.softmax(masked, -1).isfinite().all()


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 1.5,
        lambda x: x @ torch.eye(x.shape[1], dtype=x.dtype),
        lambda x: x.float().to(x.dtype),
        lambda x: functional.softmax(x, -1, dtype=torch.float32).to(x.dtype),
    ],
    ids=["function", "product", "cast", "softmax"],
)
def test_narrow_results_lose_what_rounding_to_their_dtype_loses(name, function):
    dtype, unit = getattr(torch, name), PRECISIONS[name].unit_roundoff
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain = function(x).double()
    with simulated_rounding(0):
        moved = function(x)
    assert moved.dtype == dtype
    relative = ((moved.double() - plain).square().mean() / plain.square().mean()).sqrt() / unit
    assert 0.45 < relative < 1


def test_what_narrow_types_do_not_round_stays():
    x = torch.randn(30, 40).bfloat16()
    hidden = torch.full((40,), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    with simulated_rounding(0):
        assert torch.equal(x.T.contiguous().T, x)
        assert torch.equal(torch.relu(x), x.clamp_min(0))
        assert torch.equal(x + hidden, hidden.expand(30, 40))
