"""Rules at work: which parts of which tensors make up a part of another, and their copying."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .axis_ranges import Ranges, Sizes, find_box, hull, regions, select_ranges
from .boxes import Box, Range, box_shape, relative, slices
from .pattern import Index, Side
from .strided_copy import copy_bits


class Piece(NamedTuple):
    """A part of an array, and the part of one tensor that holds the same numbers."""

    name: str  # of the tensor
    ranges: Ranges  # of every axis
    place: tuple[slice, ...]  # where in the box that was asked for lies the region
    region: Ranges  # of the array's axes, of which `ranges` is a part
    box: tuple[Range, ...]  # of the tensor: all of it that must be read
    held: Ranges  # of the axes in that box, of which `ranges` is a part as well


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One direction of a rule at given sizes: from the tensors of `source` to those of `target`."""

    source: Side
    target: Side
    sizes: Sizes

    def pieces(self, index: Index, box: Box) -> Iterator[Piece]:
        """The pieces of source tensors that make up `box` of the target tensor at `index`.

        An axis that only the source's name has is a copy, of which the first is read.
        """
        source, target, sizes = self.source, self.target, self.sizes
        copies = {axis: (0, 1) for axis in source.name_axes if axis not in target.axes}
        fixed = {axis: (position, position + 1) for axis, position in index.items()}
        for region in regions(target.dims, box, sizes):
            place = slices(relative(find_box(target.dims, region, sizes), box))
            ranges = {**copies, **fixed, **region}
            for positions in itertools.product(*(range(*ranges[a]) for a in source.name_axes)):
                at = dict(zip(source.name_axes, positions, strict=True))
                narrowed = {axis: (position, position + 1) for axis, position in at.items()}
                wanted = {**ranges, **narrowed}
                held = hull(source.dims, wanted, sizes)
                needed = find_box(source.dims, held, sizes)
                yield Piece(source.format_name(at, sizes), wanted, place, region, needed, held)

    def read(
        self,
        index: Index,
        box: Box,
        read: Callable[[str, Box], np.ndarray],
        dtype: np.dtype,
    ) -> np.ndarray:
        """`box` of the target tensor at `index`, from the boxes of tensors that `read` returns."""
        out = np.empty(box_shape(box), dtype)
        for piece in self.pieces(index, box):
            self.copy_part(piece, read(piece.name, piece.box), out)
        return out

    def copy(self, piece: Piece, tensor: np.ndarray, out: np.ndarray) -> None:
        """Copies one piece of `tensor` to its place in `out`, the box that was asked for."""
        self.copy_part(piece, tensor[slices(piece.box)], out)

    def copy_part(self, piece: Piece, part: np.ndarray, out: np.ndarray) -> None:
        """Copies one piece to its place in `out`; `part` is the piece's box of its tensor."""
        source, target = self.source.array_axes, self.target.array_axes
        shared = [axis for axis in target if axis in source]
        order = [axis for axis in source if axis in shared]
        from_view = select_ranges(part, source, piece.held, piece.ranges, shared)
        into_view = select_ranges(out[piece.place], target, piece.region, piece.ranges, shared)
        copy_bits(from_view.transpose([order.index(axis) for axis in shared]), into_view)
