"""Terms of scattered sums: their squares and their number, of each element of the result."""

import torch

from jaxllm.interop.parity.execution.operations.scattered_sums import terms_of

TOTAL = torch.tensor([2.0, 0.0, 0.0])
VALUES = torch.tensor([3.0, 4.0])


def test_terms_are_those_at_each_place():
    aten, at = torch.ops.aten, torch.tensor([0, 2])
    calls = {
        aten.index_add.default: (TOTAL, 0, at, VALUES),
        aten.scatter_add.default: (TOTAL, 0, at, VALUES),
        aten.index_put.default: (TOTAL, [at], VALUES, True),
    }
    for func, args in calls.items():
        terms = terms_of(func, args)
        assert terms.squares.tolist() == [13.0, 0.0, 16.0]
        assert terms.number.tolist() == [2.0, 0.0, 1.0]


def test_what_is_replaced_is_no_sum():
    args = (TOTAL, [torch.tensor([0, 2])], VALUES)
    assert terms_of(torch.ops.aten.index_put.default, args) is None
