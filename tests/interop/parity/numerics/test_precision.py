"""Precisions: units of roundoff equal those of the dtypes, and are found by tensors and arrays."""

import numpy as np
import pytest

from jaxllm.interop.parity.numerics.precision import FLOAT32, PRECISIONS, computed_in, precision_of

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_unit_roundoff_is_half_of_the_spacing_at_one(name):
    dtype = getattr(torch, name)
    assert PRECISIONS[name].unit_roundoff == torch.finfo(dtype).eps / 2
    assert precision_of(torch.ones(2, dtype=dtype)) == PRECISIONS[name]


def test_other_dtypes_have_no_precision():
    assert precision_of(np.ones(2)) is None
    assert precision_of(torch.arange(3)) is None
    assert precision_of(np.ones(2, np.float32)) == PRECISIONS["float32"]


def test_a_model_computes_in_the_narrower_of_two_dtypes():
    assert computed_in(["float32", "float32"]) == FLOAT32
    assert computed_in(["float32", "float16"]) == PRECISIONS["float16"]
    for mixed in (["bfloat16", "float16"], ["float64"], []):
        assert computed_in(mixed) is None
