"""Layouts: every one maps each element to one element, and the plausible ones are listed."""

import math
from functools import partial

import numpy as np
import pytest

from jaxllm.interop.inspection.shape_layouts import list_layouts, stacked_layouts
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import Rule

CASES = [
    ((6,), (6,), 1),
    ((6, 4), (6, 4), 1),
    ((6, 4), (4, 6), 1),
    ((4, 4), (4, 4), 2),
    ((12, 5), (5, 3, 4), 1),
    ((12, 12), (12, 3, 4), 2),
    ((5, 12), (3, 4, 5), 1),
    ((2, 3, 4), (24,), 1),
    ((6, 1), (6,), 1),
    ((6, 4), (5, 5), 0),
    ((6, 4), (8, 3), 0),
]


def count(shape, name, box):
    return [(box, np.arange(math.prod(shape)).reshape(shape))]


@pytest.mark.parametrize(("left", "right", "number"), CASES)
def test_layouts_are_bijections_between_the_shapes(left, right, number):
    found = list_layouts(left, right)
    assert len(found) == len(set(found)) == number
    for layout in found:
        sizes = {f"A{i}": size for i, size in enumerate(layout.atoms)}
        dims = [
            tuple(tuple(f"A{axis}" for axis in dim) for dim in side)
            for side in (layout.left, layout.right)
        ]
        rule = Rule(Side("left", dims[0]), Side("right", dims[1]))
        assert rule.stored.shape(sizes) == left
        assert rule.model.shape(sizes) == right
        whole = [(0, size) for size in right]
        moved = rule.importing(sizes).read({}, whole, partial(count, left), np.dtype(int))
        assert sorted(moved.reshape(-1)) == list(range(math.prod(left)))


def test_a_matrix_is_as_it_is_or_transposed():
    assert [one.is_transposed for one in list_layouts((6, 4), (6, 4))] == [False]
    assert [one.is_transposed for one in list_layouts((6, 4), (4, 6))] == [True]
    assert {one.is_transposed for one in list_layouts((4, 4), (4, 4))} == {False, True}


@pytest.mark.parametrize(
    ("left", "right", "counts"),
    [((5,), (5,), ((3,), (3,))), ((5,), (3, 5), ((3,), ())), ((3, 5), (5,), ((), (3,)))],
)
def test_axes_of_names_come_first(left, right, counts):
    (layout,) = stacked_layouts(left, right, *counts)
    found = [
        tuple(math.prod(layout.atoms[axis] for axis in dim) for dim in side)
        for side in (layout.left, layout.right)
    ]
    assert found == [(*counts[0], *left), (*counts[1], *right)]


def test_names_that_count_different_things_do_not_fit():
    assert list(stacked_layouts((5,), (5,), (3,), (2,))) == []
    assert list(stacked_layouts((5,), (4,), (3,), (3,))) == []
