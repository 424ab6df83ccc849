"""Tiled copies give the same bits as plain assignment, for all strides, orders and dtypes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.interop.rules.strided_copy import copy_bits

DTYPES = [np.bool_, ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16, np.float32, np.int64, "c16"]


def random_bits(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Returns random bytes as `dtype`; booleans are only 0 or 1."""
    data = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return (data % 2 if dtype == np.bool_ else data).view(dtype)[..., 0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_view_copies_into_any_view(data):
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    rank = data.draw(st.integers(0, 4))
    sizes = [data.draw(st.sampled_from([0, 1, 2, 3, 5])) for _ in range(rank)]
    if rank:  # one axis may be long
        sizes[data.draw(st.integers(0, rank - 1))] = data.draw(st.sampled_from([2, 70]))
    shape = tuple(sizes)
    orders = [data.draw(st.permutations(range(rank))) for _ in range(2)]
    steps = tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in range(rank))

    def view(order: list[int], seed: int) -> np.ndarray:
        lying = [2 * shape[axis] for axis in order]
        return random_bits(tuple(lying), dtype, seed).transpose(np.argsort(order))[
            (*(slice(0, size) for size in shape), ...)
        ]

    source = view(orders[0], 0)[(*steps, ...)]
    # A step of two halves an axis.
    out = view(orders[1], 1)[(*(slice(0, size) for size in source.shape), ...)]
    copy_bits(source, out)
    assert out.tobytes() == source.tobytes()


@pytest.mark.parametrize("shape", [(65, 1025), (1, 70000), (3, 130, 2049), (2, 300, 5, 200)])
def test_arrays_larger_than_a_tile_are_copied(shape):
    source = random_bits(shape, np.dtype(ml_dtypes.bfloat16))
    out = np.empty(shape[::-1], source.dtype).T
    copy_bits(source, out)
    assert out.tobytes() == source.tobytes()


def test_memory_around_the_target_is_not_touched():
    around = np.zeros((300, 400), np.uint16)
    copy_bits(random_bits((380, 280), around.dtype).T, around[10:290, 10:390])
    inside = around[10:290, 10:390].copy()
    around[10:290, 10:390] = 0
    assert not around.any()
    assert inside.tobytes() == random_bits((380, 280), around.dtype).T.tobytes()
