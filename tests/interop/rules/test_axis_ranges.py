"""Ranges of merged axes: contiguous boxes cover every element exactly once."""

import math

import chex
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.interop.rules.axis_ranges import find_box, hull, regions, select_ranges, split_range

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(SIZES, st.data())
def test_split_range_covers_each_position_once_in_order(sizes, data):
    low = data.draw(st.integers(0, math.prod(sizes)))
    high = data.draw(st.integers(low, math.prod(sizes)))
    array = np.arange(math.prod(sizes)).reshape(sizes)
    found = []
    for box in split_range(low, high, sizes):
        part = array[tuple(slice(*bounds) for bounds in box)].reshape(-1)
        assert (np.diff(part) == 1).all()
        found += part.tolist()
    assert found == list(range(low, high))


@given(st.data())
def test_regions_cover_the_box_exactly_once(data):
    dims, sizes = (("A", "B"), ("C",)), {"A": 3, "B": 4, "C": 5}
    box = []
    for size in (12, 5):
        low = data.draw(st.integers(0, size))
        box.append((low, data.draw(st.integers(low, size))))
    covered = np.zeros((12, 5), int)
    for region in regions(dims, box, sizes):
        covered[tuple(slice(*bounds) for bounds in find_box(dims, region, sizes))] += 1
    wanted = np.zeros((12, 5), int)
    wanted[tuple(slice(*bounds) for bounds in box)] = 1
    chex.assert_trees_all_equal(covered, wanted)


def test_hull_widens_every_axis_behind_a_wide_one():
    dims, sizes = (("A", "B"), ("C",)), {"A": 3, "B": 4, "C": 5}
    wide = {"A": (0, 2), "B": (1, 2), "C": (2, 3)}
    assert hull(dims, wide, sizes) == {"A": (0, 2), "B": (0, 4), "C": (2, 3)}
    narrow = {"A": (1, 2), "B": (1, 3), "C": (2, 3)}
    assert hull(dims, narrow, sizes) == narrow


def test_selected_part_has_a_dimension_for_each_kept_axis():
    array = np.arange(24).reshape(6, 4)  # (A 2, B 3), C 4
    region = {"A": (0, 2), "B": (0, 3), "C": (0, 4)}
    ranges = {"A": (1, 2), "B": (0, 2), "C": (1, 3)}
    part = select_ranges(array, ("A", "B", "C"), region, ranges, ("B", "C"))
    chex.assert_shape(part, (2, 2))
    chex.assert_trees_all_equal(part, array[3:5, 1:3])
