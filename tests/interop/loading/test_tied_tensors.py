"""Copies are compared bit by bit, including NaNs and the sign of zero."""

import numpy as np
import pytest

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.loading.tied_tensors import have_same_bits


def stored(path, array: np.ndarray) -> StoredTensor:
    path.write_bytes(array.tobytes())
    return StoredTensor(path.name, array.dtype, array.shape, path, 0)


@pytest.mark.parametrize("max_bytes", [1, 20, 1 << 20])
def test_equality_is_bitwise(tmp_path, max_bytes):
    array = np.array([[np.nan, 0.0, 1.0], [np.inf, -0.0, 2.0]], np.float32)
    one, other = stored(tmp_path / "a", array), stored(tmp_path / "b", array)
    assert have_same_bits(one, other, max_bytes)
    changed = array.copy()
    changed[1, 1] = 0.0  # equal in numbers, not in bits
    assert not have_same_bits(one, stored(tmp_path / "c", changed), max_bytes)


def test_strided_view_can_equal_a_contiguous_tensor(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored(tmp_path / "a", array)
    view = StoredTensor("t", array.dtype, (3, 2), tmp_path / "a", 0, strides=(1, 3))
    assert have_same_bits(view, stored(tmp_path / "b", np.ascontiguousarray(array.T)), 8)


def test_other_dtype_or_shape_is_unequal(tmp_path):
    one = stored(tmp_path / "a", np.zeros((2, 3), np.float32))
    assert not have_same_bits(one, stored(tmp_path / "b", np.zeros((3, 2), np.float32)), 64)
    assert not have_same_bits(one, stored(tmp_path / "c", np.zeros((2, 3), np.int32)), 64)
