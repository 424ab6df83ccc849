"""Boxes of an array: intersections, relative positions, and splitting into smaller boxes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.interop.rules.boxes import box_shape, boxes, intersect, relative, slices

SHAPE = (4, 3, 5)


def ranges(size: int):
    """Draws a non-empty range of a dimension."""
    return st.sampled_from([(a, b) for a in range(size) for b in range(a + 1, size + 1)])


BOXES = st.tuples(*map(ranges, SHAPE))


def inside(box) -> set[tuple[int, ...]]:
    """Returns every position in a box."""
    return set(itertools.product(*(range(low, high) for low, high in box)))


@given(BOXES, BOXES)
def test_intersection_is_what_both_boxes_contain(one, other):
    found = intersect(one, other)
    assert (set() if found is None else inside(found)) == inside(one) & inside(other)
    if found is not None:
        x = np.arange(math.prod(SHAPE)).reshape(SHAPE)
        for box in (one, other):
            part = x[slices(box)][slices(relative(found, box))]
            np.testing.assert_array_equal(part, x[slices(found)])
            assert part.shape == box_shape(found)


@pytest.mark.parametrize("most", [1, 4, 7, 15, 30, 100])
def test_splitting_keeps_every_element_in_order(most):
    x = np.arange(math.prod(SHAPE)).reshape(SHAPE)
    cut = [x[slices(box)].ravel() for box in boxes(SHAPE, most)]
    np.testing.assert_array_equal(np.concatenate(cut), x.ravel())
    assert max(map(len, cut)) <= most
