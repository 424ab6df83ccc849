"""Operations in place are computed in float64 and rounded like those that return their result."""

import pytest
import torch
from torch.nn.functional import pad

from jaxllm.errors import UserError
from jaxllm.interop.parity.execution.float64 import in_float64
from jaxllm.interop.parity.execution.operations.in_place import functional, written
from jaxllm.interop.parity.execution.simulated_rounding import simulated_rounding

N = 60
X, W = (torch.randn(N, N, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
FIRST = torch.arange(N) // 3  # three rows of the source for each of the target
WHERE = torch.arange(N).flip(0).expand(N, N)


def begun(x):
    """Returns a new tensor that holds `x`."""
    return torch.zeros(N, N, dtype=torch.float32).copy_(x)


def sliced(x, w):
    y = torch.zeros(N, N)
    y[:, 1:] = (x * w)[:, 1:]
    y[:, :9] += x[:, :9]
    return y * w


# Each function twice: in place, and by operations that return their result.
PAIRS = {
    "add_": (lambda x, w: begun(x).add_(w, alpha=0.3), lambda x, w: x + 0.3 * w),
    "augmented": (lambda x, w: begun(x).mul_(w).div_(3.0), lambda x, w: x * w / 3.0),
    "function": (lambda x, w: begun(x * w).exp_(), lambda x, w: (x * w).exp()),
    "copy_": (lambda x, w: torch.zeros(N, N).copy_(x * w), lambda x, w: x * w),
    "slices": (
        sliced,
        lambda x, w: (pad((x * w)[:, 1:], (1, 0)) + pad(x[:, :9], (0, N - 9))) * w,
    ),
    "masked_fill_": (
        lambda x, w: begun(x * w).masked_fill_(WHERE > 3, 0.5),
        lambda x, w: (x * w).masked_fill(WHERE > 3, 0.5),
    ),
    "scatter_": (
        lambda x, w: torch.zeros(N, N).scatter_(1, WHERE, x * w),
        lambda x, w: (x * w).flip(1),
    ),
    "index_add_": (
        lambda x, w: torch.zeros(N, N).index_add_(0, FIRST, x * w),
        lambda x, w: pad((x * w).reshape(N // 3, 3, N).sum(1), (0, 0, 0, N - N // 3)),
    ),
    "index_put_": (
        lambda x, w: torch.zeros(N, N).index_put_((FIRST,), x * w, accumulate=True),
        lambda x, w: pad((x * w).reshape(N // 3, 3, N).sum(1), (0, 0, 0, N - N // 3)),
    ),
    "scatter_add_": (
        lambda x, w: torch.zeros(N, N).scatter_add_(1, WHERE // 2, x * w),
        lambda x, w: pad((x * w).flip(1).reshape(N, N // 2, 2).sum(2), (0, N // 2)),
    ),
    "addmm_": (lambda x, w: begun(x).addmm_(x, w), lambda x, w: x + x @ w),
    "out=": (
        lambda x, w: torch.mul(x, w, out=torch.empty(N, N)),
        lambda x, w: x * w,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_float64_is_exact_to_float64(name):
    in_place, returning = PAIRS[name]
    with in_float64():
        found = in_place(X, W)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, returning(X.double(), W.double()), rtol=1e-12, atol=1e-13)
    assert in_place(X, W).dtype == torch.float32


@pytest.mark.parametrize("name", PAIRS)
def test_simulated_rounding_is_that_of_operations_that_return(name):
    def error(function):
        plain, found = function(X, W).double(), []
        for seed in range(4):
            with simulated_rounding(seed):
                found.append((function(X, W).double() - plain).square().mean())
        return float(torch.stack(found).mean().sqrt())

    in_place, returning = map(error, PAIRS[name])
    assert returning > 1e-9
    assert 0.5 < in_place / returning < 2


@pytest.mark.parametrize("name", ["slices", "index_add_", "masked_fill_"])
def test_gradients_through_what_is_written_are_in_float64(name):
    def gradient(function, x):
        x = x.clone().requires_grad_()
        function(x, W.to(x.dtype)).square().sum().backward()
        return x.grad

    in_place, returning = PAIRS[name]
    exact = gradient(returning, X.double())
    with in_float64():
        found = gradient(in_place, X.double())
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)
    with simulated_rounding(0):
        noisy = gradient(in_place, X)
    torch.testing.assert_close(noisy, exact.float(), rtol=1e-4, atol=1e-4)
    assert not torch.equal(noisy, gradient(in_place, X))


def test_constants_that_are_written_stay_constants():
    def table():
        found = torch.arange(8.0)
        found[2:] = found[2:].log()
        return found.mul_(0.1)

    plain = table()
    for context in (in_float64(), simulated_rounding(0)):
        with context:
            assert torch.equal(table(), plain)


def test_what_is_written_into_a_constant_is_none_afterwards():
    """A view is written, and the whole must count as data from then on."""

    def run():
        y = torch.zeros(N, N)
        y[:, 1:] = X[:, 1:] * 1.0
        return y.exp()

    plain = run()
    with simulated_rounding(0):
        assert not torch.equal(run(), plain)


def test_a_tensor_that_the_module_keeps_is_named():
    kept = torch.zeros(N, N)
    with in_float64(), pytest.raises(UserError, match=r"keeps a tensor of torch.float32.*copy_"):
        kept.copy_(X.double() / 3)


def test_a_tensor_that_the_module_keeps_may_get_what_it_holds_exactly():
    """LongRoPE writes one of two tables of float32 frequencies."""
    kept = torch.zeros(N, N)
    with in_float64():
        kept.copy_(torch.where(WHERE > 3, X, W))
        assert torch.equal(kept, torch.where(WHERE > 3, X.double(), W.double()))
    assert torch.equal(kept, torch.where(WHERE > 3, X, W))


def test_parameters_are_updated_as_they_are():
    weight = X.clone().requires_grad_()
    with torch.no_grad(), simulated_rounding(0):
        weight.mul_(0.5)
    assert torch.equal(weight, X * 0.5)


def test_the_returning_operation_of_each_is_found():
    aten = torch.ops.aten
    assert functional(aten.add_.Tensor) is aten.add.Tensor
    assert functional(aten.fill_.Scalar) is aten.fill.Scalar
    assert functional(aten.mul.out) is aten.mul.Tensor
    target = torch.zeros(3)
    assert written(aten.add_.Tensor, (target, target + 1), {})[0] is target
    assert written(aten.mul.out, (X, W), {"out": target})[0] is target
