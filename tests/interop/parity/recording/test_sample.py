"""Samples take the same elements of all arrays of one shape."""

import numpy as np
import pytest

from jaxllm.interop.parity.numerics.metrics import position_buckets
from jaxllm.interop.parity.recording.sample import Sample, elements, places, spread_positions


@pytest.mark.parametrize("length", [1, 5, 40, 300, 5000])
@pytest.mark.parametrize("count", [1, 16, 50])
def test_positions_are_spread_over_all_position_ranges(length, count):
    found = spread_positions(length, count)
    assert sorted(set(found)) == list(found)
    assert found[-1] == length - 1
    assert all(0 <= at < length for at in found)
    for start, stop in position_buckets(length):
        assert any(start <= at < (stop or length) for at in found)


@pytest.mark.parametrize(("size", "count"), [(10, 20), (4096, 100), (10**7, 1000)])
def test_places_are_evenly_spread_and_not_aligned_with_rows(size, count):
    found = places(size, count)
    assert len(found) == len(set(found.tolist())) == min(size, count)
    assert 0 <= found.min() <= found.max() < size
    if size > count:
        for rows in (8, 64, 100):
            assert np.bincount(found % rows, minlength=rows).min() > 0 or count < 5 * rows
        counts, _ = np.histogram(found, 10, (0, size))
        assert counts.min() > 0.8 * count / 10


def test_a_sample_takes_the_same_elements_of_all_arrays_of_a_shape():
    x_BTD = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)
    mask_BT = np.array([[1] * 6, [1, 1, 1, 0, 0, 0]])
    sample = Sample((0, 2, 5), 3)
    found = sample.of(x_BTD, (2, 6), mask_BT, whole=False)
    rows = [x_BTD[0, 0], x_BTD[0, 2], x_BTD[0, 5], x_BTD[1, 0], x_BTD[1, 2]]
    np.testing.assert_array_equal(found, np.stack(rows)[:, places(5, 3)])
    np.testing.assert_array_equal(sample.of(x_BTD, (2, 6), mask_BT, whole=True), np.stack(rows))
    at = np.broadcast_to(np.arange(6), (2, 6))
    assert sample.of(at, (2, 6), mask_BT, whole=False).tolist() == [0, 2, 5, 0, 2]


def test_elements_takes_the_values_at_the_places():
    x = np.random.default_rng(0).random((30, 40))
    found = elements({"a": x, "b": x[:1, :5]}, 100)
    np.testing.assert_array_equal(found["a"], x.reshape(-1)[places(1200, 100)])
    np.testing.assert_array_equal(found["b"], x[0, :5])
