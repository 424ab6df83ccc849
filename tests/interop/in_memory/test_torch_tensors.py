"""Tensors of PyTorch and arrays of NumPy share memory, in every dtype that both have."""

import numpy as np
import pytest
import torch

from jaxllm.interop.formats.pytorch.storage_views import WRITABLE_DTYPES
from jaxllm.interop.in_memory.torch_tensors import (
    from_numpy,
    is_tensor,
    numpy_dtype,
    to_numpy,
    torch_dtype,
    why_unreadable,
)

DTYPES = sorted(WRITABLE_DTYPES, key=str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_shared_in_both_directions(dtype):
    drawn = np.random.default_rng(0).integers(0, 2, (3, 4 * dtype.itemsize), np.uint8)
    array = drawn.view(dtype)
    tensor = from_numpy(array)
    assert tensor.dtype == torch_dtype(dtype)
    assert tensor.data_ptr() == array.ctypes.data
    again = to_numpy(tensor.t()[1:])
    assert numpy_dtype(tensor) == again.dtype == dtype
    assert again.tobytes() == array.T[1:].tobytes()
    assert again.ctypes.data == array.ctypes.data + dtype.itemsize


def test_numbers_that_a_tensor_changes_when_read_are_changed():
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    np.testing.assert_array_equal(to_numpy(tensor.conj()), [1 - 2j, 3 + 4j])
    np.testing.assert_array_equal(to_numpy(tensor.conj().imag), [-2, 4])


def test_only_tensors_of_pytorch_are_tensors():
    assert is_tensor(torch.nn.Parameter(torch.zeros(1)))
    assert not is_tensor(np.zeros(1))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: torch.zeros(2, device="meta"), "is on the meta device"),
        (lambda: torch.nn.LazyLinear(3).weight, "is not initialized"),
        (lambda: torch.eye(2).to_sparse(), "torch.sparse_coo: make it dense"),
        (lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), "make it dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "torch.qint8"),
    ],
)
def test_tensors_without_plain_numbers_are_named(make, complaint):
    assert complaint in why_unreadable(make())


def test_fake_tensors_have_no_numbers():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert "holds no numbers" in why_unreadable(torch.zeros(2))
    assert why_unreadable(torch.zeros(2)) is None
