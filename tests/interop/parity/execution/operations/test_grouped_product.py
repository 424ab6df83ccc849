"""Grouped products equal PyTorch's own, and their gradients as well."""

import pytest
import torch

from jaxllm.interop.parity.execution.float64 import in_float64
from jaxllm.interop.parity.execution.operations.grouped_product import grouped_product

OFFS = torch.tensor([5, 5, 16], dtype=torch.int32)  # the second group is empty


def test_rows_of_groups_and_sums_over_groups_equal_pytorchs():
    rows, matrices = torch.randn(16, 8), torch.randn(3, 8, 12)
    torch.testing.assert_close(
        grouped_product(rows, matrices, OFFS), torch._grouped_mm(rows, matrices, offs=OFFS)
    )
    others = torch.randn(16, 12)
    torch.testing.assert_close(
        grouped_product(rows.T, others, OFFS), torch._grouped_mm(rows.T, others, offs=OFFS)
    )


def test_rows_behind_the_last_group_are_zero():
    found = grouped_product(torch.ones(20, 8), torch.ones(3, 8, 4), OFFS)
    assert found[:16].eq(8).all()
    assert found[16:].eq(0).all()


def test_it_runs_in_float64():
    rows = torch.randn(16, 8, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(3, 8, 12, dtype=torch.float64)
    with in_float64():
        found = torch._grouped_mm(rows, matrices, offs=OFFS)
        found.sum().backward()
    assert found.dtype == rows.grad.dtype == torch.float64
    torch.testing.assert_close(rows.grad[:5], matrices[0].sum(1).expand(5, 8))


def test_what_the_models_do_not_use_is_refused():
    with pytest.raises(NotImplementedError, match="a bias or without groups"):
        grouped_product(torch.ones(2, 2), torch.ones(2, 2))
