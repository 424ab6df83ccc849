"""Constants: what is computed from integers alone stays as the reference computes it."""

import pytest
import torch

from jaxllm.interop.parity.execution.float64 import in_float64
from jaxllm.interop.parity.execution.simulated_rounding import simulated_rounding

CONTEXTS = pytest.mark.parametrize(
    "context", [in_float64, lambda: simulated_rounding(0)], ids=["float64", "simulated"]
)
DISTANCES = torch.arange(1, 400)


def buckets():
    """Buckets of distances as T5 has them: at 16, 32 and 64 rounding decides."""
    large = torch.log(DISTANCES.float() / 8) / torch.log(torch.tensor(16.0)) * 8
    return large.to(torch.long)


@CONTEXTS
def test_decisions_on_positions_are_those_of_the_reference(context):
    expected = buckets()
    steps = torch.floor((DISTANCES.float() + 1.0) / 64.0)
    with context():
        assert torch.equal(buckets(), expected)
        assert torch.equal(torch.floor((DISTANCES.float() + 1.0) / 64.0), steps)


@CONTEXTS
def test_what_depends_on_data_is_no_constant(context):
    data, positions = torch.rand(399), DISTANCES.float()
    with context():
        found = DISTANCES.float() * data
        again = (DISTANCES.float() + 0.0) * data
    assert not torch.equal(found.float() * 0 + found, positions * data)
    exact = positions.double() * data.double()
    assert float((again.double() - exact).norm() / exact.norm()) < 5e-7


@CONTEXTS
def test_complex_numbers_are_data(context):
    """As in the rotation of queries and keys, of which transformers writes some so."""
    data = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    with context():
        turned = torch.view_as_real(torch.view_as_complex(data.float()) * torch.tensor(1j)).float()
        turned.square().sum().backward()
    torch.testing.assert_close(data.grad, 2 * data.detach(), rtol=1e-5, atol=1e-5)


@CONTEXTS
def test_what_data_are_written_to_is_no_constant(context):
    data = torch.rand(399)
    with context():
        plain = torch.zeros(399)
        plain += data
        found = (plain * 3.0).double()
    exact = 3.0 * data.double()
    error = float((found - exact).norm() / exact.norm())
    assert error < 5e-7
    if context is not in_float64:
        assert error > 0
