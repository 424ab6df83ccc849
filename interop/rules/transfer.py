"""Applies rules: finds the tensor pieces that make up a box of an array, and copies them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .axis_ranges import Ranges, Sizes, find_box, hull, overlap, regions, select_ranges
from .boxes import Box, Range, box_shape, relative, slices
from .pattern import Index, Side
from .strided_copy import copy_bits

# Boxes that make up a box of the tensor of a given name, each with its numbers.
Parts = Callable[[str, Box], Iterable[tuple[Box, np.ndarray]]]


class Piece(NamedTuple):
    """A part of a requested box, and the part of one source tensor with the same numbers."""

    name: str  # the source tensor
    ranges: Ranges  # the piece itself, as a range of every axis
    place: tuple[slice, ...]  # the slices of the requested box that hold `region`
    region: Ranges  # ranges of the target's axes, contiguous there; contains `ranges`
    box: tuple[Range, ...]  # the box of the source tensor that must be read
    held: Ranges  # ranges of the source's axes in `box`; contains `ranges`


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One direction of a rule at given sizes: makes tensors of `target` from those of `source`."""

    source: Side
    target: Side
    sizes: Sizes

    def pieces(self, index: Index, box: Box) -> Iterator[Piece]:
        """Yields the pieces of source tensors that make up a box of a target tensor.

        Along an axis that occurs only in the source's name all tensors are copies: the first is
        read.

        Args:
            index: the positions of the axes in the target tensor's name.
            box: the requested box of the target tensor.
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

    def read(self, index: Index, box: Box, parts: Parts, dtype: np.dtype) -> np.ndarray:
        """Returns a box of a target tensor.

        Args:
            index: the positions of the axes in the target tensor's name.
            box: the requested box of the target tensor.
            parts: returns the boxes that make up a box of the source tensor of a given name, each
                with its numbers.
            dtype: of the source tensors and of the result.
        """
        out = np.empty(box_shape(box), dtype)
        self.fill(index, box, parts, out)
        return out

    def fill(self, index: Index, box: Box, parts: Parts, out: np.ndarray) -> None:
        """Copies a box of a target tensor into an array; see `read`.

        Raises:
            ValueError: the array is not in C order, so that its merged axes cannot be split.
        """
        if not out.flags.c_contiguous:
            raise ValueError("only arrays in C order can be filled")
        for piece in self.pieces(index, box):
            for held, part in parts(piece.name, piece.box):
                for region in regions(self.source.dims, held, self.sizes):
                    if (common := overlap(region, piece.ranges)) is not None:
                        place = relative(find_box(self.source.dims, region, self.sizes), held)
                        self._copy_ranges(piece, part[slices(place)], region, common, out)
                del part  # before the next one is read

    def copy(self, piece: Piece, tensor: np.ndarray, out: np.ndarray) -> None:
        """Copies a piece of the whole source tensor to its place in `out`, the requested box."""
        self._copy_ranges(piece, tensor[slices(piece.box)], piece.held, piece.ranges, out)

    def _copy_ranges(
        self, piece: Piece, part: np.ndarray, held: Ranges, ranges: Ranges, out: np.ndarray
    ) -> None:
        """Copies these ranges of a piece to their place in `out` from a part that holds `held`."""
        source, target = self.source.array_axes, self.target.array_axes
        shared = [axis for axis in target if axis in source]
        order = [axis for axis in source if axis in shared]
        from_view = select_ranges(part, source, held, ranges, shared)
        into_view = select_ranges(out[piece.place], target, piece.region, ranges, shared)
        copy_bits(from_view.transpose([order.index(axis) for axis in shared]), into_view)
