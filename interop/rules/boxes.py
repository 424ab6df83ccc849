"""Boxes: rectangular regions of arrays, one half-open index range per dimension."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

Range = tuple[int, int]  # half-open: [start, stop)
Box = Sequence[Range]


def box_shape(box: Box) -> tuple[int, ...]:
    """Returns the shape of a box."""
    return tuple(high - low for low, high in box)


def slices(box: Box) -> tuple[slice, ...]:
    """Returns the box as slices, to index an array with."""
    return tuple(slice(low, high) for low, high in box)


def relative(box: Box, within: Box) -> tuple[Range, ...]:
    """Returns a box in coordinates relative to the start of `within`, which contains it."""
    return tuple(
        (low - first, high - first) for (low, high), (first, _) in zip(box, within, strict=True)
    )


def intersect(one: Box, other: Box) -> tuple[Range, ...] | None:
    """Returns the intersection of two boxes of the same array, or None if they are disjoint."""
    pairs = zip(one, other, strict=True)
    found = tuple((max(low, first), min(high, last)) for (low, high), (first, last) in pairs)
    return found if all(low < high for low, high in found) else None


def boxes(shape: Sequence[int], max_elements: int) -> Iterator[Box]:
    """Splits an array into boxes of at most `max_elements` elements, contiguous in C order."""
    if math.prod(shape) == 0:
        return
    inner = list(shape)
    lead = 0
    while lead < len(shape) and math.prod(inner[lead + 1 :]) > max_elements:
        lead += 1
    step = max(max_elements // math.prod(inner[lead + 1 :]), 1)
    rest = tuple((0, size) for size in inner[lead + 1 :])
    for index in np.ndindex(*inner[:lead]):
        first = tuple((i, i + 1) for i in index)
        if lead == len(shape):
            yield first
            continue
        for start in range(0, inner[lead], step):
            yield (*first, (start, min(start + step, inner[lead])), *rest)
