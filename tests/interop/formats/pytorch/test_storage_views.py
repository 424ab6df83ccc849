"""Views of storages: valid ones keep their dtype and strides, others are rejected."""

import ml_dtypes
import numpy as np
import pytest

from jaxllm.interop.formats.pytorch.storage_views import Storage, View, c_strides, view_of
from jaxllm.interop.formats.stored_tensor import CheckpointError

FLOATS = Storage(np.dtype(np.float32), "0", 6)
BYTES = Storage(np.dtype(np.uint8), "1", 6)


def test_storage_counts_bytes():
    assert FLOATS.nbytes == 24


@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 3), (3, 1)), ((4,), (1,)), ((), ()), ((2, 0, 3), (3, 3, 1))]
)
def test_c_strides_count_elements(shape, strides):
    assert c_strides(shape) == strides


def test_arguments_describe_a_view():
    view = view_of((FLOATS, 1, (2, 2), (2, 1), False, {}))
    assert view == View(FLOATS, np.dtype(np.float32), 1, (2, 2), (2, 1))
    assert view.is_contiguous


@pytest.mark.parametrize(
    ("shape", "strides", "contiguous"),
    [((3, 2), (1, 3), False), ((2, 1), (1, 7), True), ((5, 2), (0, 1), False), ((0,), (9,), True)],
)
def test_contiguous_views_ignore_strides_of_size_one_and_empty(shape, strides, contiguous):
    assert view_of((FLOATS, 0, shape, strides, False, {})).is_contiguous == contiguous


def test_newer_dtype_views_a_storage_of_bytes():
    view = view_of((BYTES, 0, (3,), (1,), False, {}, "uint16"))
    assert view.dtype == np.uint16
    assert view_of((BYTES, 0, (6,), (1,), False, {}, "float8_e4m3fn")).dtype == (
        ml_dtypes.float8_e4m3fn
    )
    with pytest.raises(CheckpointError, match="reaches element 4 of a storage of 3"):
        view_of((BYTES, 0, (4,), (1,), False, {}, "uint16"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "is not a view of a storage"),
        (("FloatStorage", 0, (1,), (1,), False, {}), "is not a view of a storage"),
        ((FLOATS, 0, (7,), (1,), False, {}), "reaches element 7 of a storage of 6"),
        ((FLOATS, 0, (2,), (1, 1), False, {}), "are not valid for 1 dimensions"),
        ((FLOATS, -1, (2,), (1,), False, {}), "are not valid for 1 dimensions"),
        ((FLOATS, 0, "ab", (1,), False, {}), "is not a list of sizes"),
        ((FLOATS, 0, (2,), (1,), False, {}, {"conj": True}), "is lazily conjugated or negated"),
    ],
)
def test_arguments_that_do_not_describe_a_view_are_rejected(arguments, message):
    with pytest.raises(CheckpointError, match=message):
        view_of(arguments)
