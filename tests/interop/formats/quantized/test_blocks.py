"""The number of each element of a box: that of its block."""

import numpy as np
import pytest

from jaxllm.interop.formats.quantized.blocks import Blocks, block_size
from jaxllm.interop.rules.boxes import slices


def test_every_element_of_a_box_gets_the_number_of_its_block():
    numbers = np.random.default_rng(0).random((2, 3, 4))
    whole = numbers.repeat(5, 1).repeat(3, 2)[:, :13, :11]  # the last blocks have fewer
    read = []

    def read_box(box):
        read.append(box)
        return numbers[slices(box)]

    blocks = Blocks(read_box, (5, 3))
    box = [(1, 2), (4, 6), (7, 11)]
    np.testing.assert_array_equal(blocks.of(box), whole[slices(box)])
    assert read == [[(1, 2), (0, 2), (2, 4)]]  # nothing but the blocks that the box touches


def test_columns_may_have_blocks_in_any_order():
    numbers, columns = np.random.default_rng(0).random((4, 3)), np.array([2, 0, 1, 1, 2])
    blocks = Blocks(lambda box: numbers[slices(box)], (1, 1), columns)
    np.testing.assert_array_equal(blocks.of([(1, 3), (2, 5)]), numbers[1:3, columns[2:5]])


@pytest.mark.parametrize(
    ("shape", "grid", "stated", "expected"),
    [
        ((10, 20), (3, 3), (4, 8), (4, 8)),
        ((12, 24), (2, 4), (4, 8), (6, 6)),  # the grid contradicts what is stated
        ((12, 24), (12, 1), None, (1, 24)),
        ((10, 20), (3, 3), None, None),
        ((10, 20), (0, 1), None, None),
    ],
)
def test_blocks_have_the_stated_size_if_the_grid_fits_it(shape, grid, stated, expected):
    assert block_size(shape, grid, stated) == expected
