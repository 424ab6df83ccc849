"""Numbers that all elements of a block share: scales and zero points."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.interop.rules.boxes import Box

from .decoded_tensor import Decode


class Blocks(NamedTuple):
    """A number for every block of a matrix, or of each of several matrices.

    Attributes:
        read: reads a box of the numbers: the dimensions before the last two are the tensor's.
        size: the rows and columns of a block; the last block of each may have fewer.
        columns: the block of each column, if they are not in order.
    """

    read: Decode
    size: tuple[int, int]
    columns: np.ndarray | None = None

    def of(self, box: Box) -> np.ndarray:
        """Returns the number of every element of a box of the tensor."""
        *lead, rows, columns = box
        of_row = np.arange(*rows) // self.size[0]
        of_column = (
            np.arange(*columns) // self.size[1]
            if self.columns is None
            else self.columns[slice(*columns)]
        )
        touched = [(int(each.min()), int(each.max()) + 1) for each in (of_row, of_column)]
        found = self.read([*lead, *touched])
        (first_row, _), (first_column, _) = touched
        return found[..., (of_row - first_row)[:, None], of_column - first_column]


def block_size(
    shape: Sequence[int], grid: Sequence[int], stated: Sequence[int] | None
) -> tuple[int, int] | None:
    """Returns the rows and columns of the blocks of a matrix, or None if the grid does not fit.

    Args:
        shape: the rows and columns of the matrix.
        grid: how many blocks there are of each.
        stated: what the config says, which the grid may contradict.
    """
    if stated is not None and all(
        -(-size // block) == count for size, block, count in zip(shape, stated, grid, strict=True)
    ):
        return stated[0], stated[1]
    if any(count < 1 or size % count for size, count in zip(shape, grid, strict=True)):
        return None
    return shape[0] // grid[0], shape[1] // grid[1]
