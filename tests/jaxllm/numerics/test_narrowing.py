"""Casts to narrower floats round as PyTorch does; what overflows or becomes zero is counted."""

import numpy as np
import pytest
import torch

from jaxllm.numerics.narrowing import Zeroed, clamp

FLOAT16 = np.dtype(np.float16)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float64"])
def test_only_what_overflows_is_clamped(stored):
    given = np.array([1.5, 65504, -7e4, 65519, np.inf, -np.inf, np.nan, 1e-9, 1e38])
    given = given.astype(np.dtype(stored))
    narrow, overflowed, _ = clamp(given, FLOAT16)
    torch_like = torch.from_numpy(given.astype(np.float32)).half().numpy()
    beyond = np.isinf(torch_like) & np.isfinite(given)
    limits = np.copysign(np.float16(65504), torch_like)
    np.testing.assert_array_equal(narrow, np.where(beyond, limits, torch_like))
    assert overflowed == beyond.sum() >= 2


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float64"])
def test_numbers_that_become_zero_are_counted(stored):
    given = np.array([0, -0.0, 2.0**-25, -(2.0**-26), 2.0**-24, 1e-9, np.nan, np.inf, 3])
    given = given.astype(np.dtype(stored))
    narrow, _, zeroed = clamp(given, FLOAT16)
    half = torch.from_numpy(given.astype(np.float32)).half().numpy()
    np.testing.assert_array_equal(narrow, half)
    assert zeroed == ((half == 0) & (given != 0)).sum() == 3


def test_dtypes_of_the_same_range_and_whole_numbers_lose_none():
    tiny = np.array([1e-38, 0, 2], np.float32)
    assert clamp(tiny, np.dtype("bfloat16")).zeroed == 0
    assert clamp(np.arange(3, dtype=np.int8), FLOAT16).zeroed == 0
    assert clamp(tiny.astype(np.float16), np.dtype(np.float32)).zeroed == 0


def test_the_arrays_that_lose_most_are_named():
    zeroed = Zeroed(FLOAT16)
    assert zeroed.describe() == ""
    for number in range(1, 8):
        zeroed.add(f"w{number}", (10, 10), number)
    zeroed.add("none", (10, 10), 0)
    lines = zeroed.describe().splitlines()
    assert lines[0] == "underflow: 28 become zero in float16, up to 2.98e-08 in magnitude"
    assert lines[1:] == [
        *(f"  w{number}: {number} of 100" for number in (7, 6, 5, 4, 3)),
        "  and fewer of 2 other arrays",
    ]
