"""Any box of a target tensor is assembled from boxes of the source tensors."""

import itertools

import chex
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.interop.rules.boxes import intersect, slices
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.transfer import Transfer

SIZES = {"L": 2, "T": 2, "n": 2, "r": 2, "h": 3, "D": 5, "E": 4}
SOURCE = Side.parse("{T:02}/q.{L} : (n r h) D")
TARGET = Side.parse("q : L D (T n) (h r)")


def stored() -> dict[str, np.ndarray]:
    return {
        name: np.random.default_rng(seed).standard_normal((12, 5))
        for seed, (name, _) in enumerate(SOURCE.names(SIZES))
    }


def whole(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the target computed independently, by reshaping whole arrays."""
    layers = []
    for i in range(2):
        shards = [tensors[f"{t:02}/q.{i}"].reshape(2, 2, 3, 5) for t in range(2)]
        layers.append(np.concatenate(shards).transpose(3, 0, 2, 1).reshape(5, 4, 6))
    return np.stack(layers)


@given(st.data())
def test_any_box_equals_that_part_of_the_whole_array(data):
    tensors = stored()
    box = []
    for size in (2, 5, 4, 6):
        low = data.draw(st.integers(0, size - 1))
        box.append((low, data.draw(st.integers(low + 1, size))))
    found = Transfer(SOURCE, TARGET, SIZES).read(
        {}, box, lambda name, inner: [(inner, tensors[name][slices(inner)])], np.dtype(float)
    )
    chex.assert_trees_all_equal(found, whole(tensors)[slices(box)])


@given(st.data())
def test_a_source_tensor_may_come_in_any_parts(data):
    """Shards may end anywhere, also within merged axes."""
    tensors = stored()
    cuts = [data.draw(st.integers(0, 12)), data.draw(st.integers(0, 5))]

    def parts(name, box):
        """The box cut at a row and at a column, each part a view."""
        whole_parts = itertools.product(
            *([(0, c), (c, n)] for c, n in zip(cuts, (12, 5), strict=True))
        )
        for part in whole_parts:
            if (common := intersect(box, part)) is not None:
                yield common, tensors[name][slices(common)]

    box = [(0, 2), (1, 5), (1, 4), (0, 6)]
    found = Transfer(SOURCE, TARGET, SIZES).read({}, box, parts, np.dtype(float))
    chex.assert_trees_all_equal(found, whole(tensors)[slices(box)])


def test_opposite_direction_returns_every_tensor():
    tensors = stored()
    array = whole(tensors)
    back = Transfer(TARGET, SOURCE, SIZES)
    for name, index in SOURCE.names(SIZES):
        read = back.read(
            index, [(0, 12), (0, 5)], lambda _, box: [(box, array[slices(box)])], array.dtype
        )
        chex.assert_trees_all_equal(read, tensors[name])


def test_an_array_whose_merged_axes_cannot_be_split_is_not_filled():
    """Its reshape would be a copy, and the numbers would be lost."""
    with pytest.raises(ValueError, match="C order"):
        Transfer(SOURCE, TARGET, SIZES).fill({}, [], lambda *_: [], np.zeros((2, 3)).T)


def test_first_of_several_copies_is_read():
    source, target = Side.parse("{T}/norm : D"), Side.parse("norm : D")
    pieces = list(Transfer(source, target, SIZES).pieces({}, [(0, 5)]))
    assert [piece.name for piece in pieces] == ["0/norm"]
