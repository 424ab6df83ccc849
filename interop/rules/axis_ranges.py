"""Index ranges of named axes; an array dimension may merge several axes in row-major order."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .boxes import Box, Range, box_shape

Sizes = Mapping[str, int]  # axis -> size
Ranges = Mapping[str, Range]  # axis -> [start, stop)
Dims = tuple[tuple[str, ...], ...]  # the axes merged into each dimension


def regions(dims: Dims, box: Box, sizes: Sizes) -> Iterator[Ranges]:
    """Splits a box of an array into axis ranges that are contiguous in every dimension."""
    choices = (
        split_range(low, high, [sizes[axis] for axis in dim])
        for dim, (low, high) in zip(dims, box, strict=True)
    )
    axes = list(itertools.chain.from_iterable(dims))
    for factors in itertools.product(*choices):
        yield dict(zip(axes, itertools.chain.from_iterable(factors), strict=True))


def overlap(region: Ranges, ranges: Ranges) -> Ranges | None:
    """Returns the intersection of a region with other ranges, which may have more axes, or None.

    Axes that the region does not have keep their ranges.
    """
    common = {
        axis: (max(low, ranges[axis][0]), min(high, ranges[axis][1]))
        for axis, (low, high) in region.items()
    }
    return {**ranges, **common} if all(low < high for low, high in common.values()) else None


def find_box(dims: Dims, ranges: Ranges, sizes: Sizes) -> tuple[Range, ...]:
    """Returns the box that `ranges`, contiguous in every dimension, occupy in an array."""
    return tuple(_interval(dim, ranges, sizes) for dim in dims)


def hull(dims: Dims, ranges: Ranges, sizes: Sizes) -> Ranges:
    """Returns the smallest ranges that contain `ranges` and are contiguous in every dimension."""
    found: dict[str, Range] = {}
    for dim in dims:
        is_whole = False
        for axis in dim:
            low, high = found[axis] = (0, sizes[axis]) if is_whole else ranges[axis]
            is_whole |= high - low > 1
    return found


def split_range(low: int, high: int, sizes: Sequence[int]) -> list[tuple[Range, ...]]:
    """Splits positions [low, high) of a merged dimension into contiguous boxes over its axes.

    Args:
        low: the first position.
        high: one past the last position.
        sizes: the size of each merged axis, slowest first.
    """
    if low >= high:
        return []
    if len(sizes) <= 1:
        return [((low, high),)] if sizes else [()]
    inner = math.prod(sizes[1:])
    (first, head), (last, tail) = divmod(low, inner), divmod(high, inner)
    if first == last:
        return [((first, first + 1), *rest) for rest in split_range(head, tail, sizes[1:])]
    boxes: list[tuple[Range, ...]] = []
    if head:
        boxes += [((first, first + 1), *rest) for rest in split_range(head, inner, sizes[1:])]
        first += 1
    if first < last:
        boxes.append(((first, last), *((0, size) for size in sizes[1:])))
    boxes += [((last, last + 1), *rest) for rest in split_range(0, tail, sizes[1:])]
    return boxes


def _interval(dim: Sequence[str], region: Ranges, sizes: Sizes) -> Range:
    """Returns the start and stop, in a merged dimension, of a contiguous region of its axes."""
    start = last = 0
    for axis in dim:
        low, high = region[axis]
        start, last = start * sizes[axis] + low, last * sizes[axis] + high - 1
    return start, last + 1


def select_ranges(
    array: np.ndarray,
    axes: Sequence[str],
    region: Ranges,
    ranges: Ranges,
    kept: Sequence[str],
) -> np.ndarray:
    """Returns a view of part of an array, with one dimension for each kept axis.

    Args:
        array: the elements of `region`, its dimensions merged or not.
        axes: the array's axes, slowest first.
        region: the range of each axis that `array` holds.
        ranges: the range of each axis to select, within `region`.
        kept: the axes that stay dimensions; any other is indexed at the start of its range.
    """
    factors = array.reshape(box_shape([region[axis] for axis in axes]))
    at: list[slice | int] = []
    for axis in axes:
        start, stop = (bound - region[axis][0] for bound in ranges[axis])
        at.append(slice(start, stop) if axis in kept else start)
    return factors[(*at, ...)]
