"""Boxes of arrays: a range of positions for each dimension."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

Range = tuple[int, int]  # from the first on, up to but not with the last
Box = Sequence[Range]


def box_shape(box: Box) -> tuple[int, ...]:
    """The sizes of a box."""
    return tuple(high - low for low, high in box)


def slices(box: Box) -> tuple[slice, ...]:
    """The box as an index of an array."""
    return tuple(slice(low, high) for low, high in box)


def relative(box: Box, within: Box) -> tuple[Range, ...]:
    """The box, counted from the start of another that holds it."""
    return tuple(
        (low - first, high - first) for (low, high), (first, _) in zip(box, within, strict=True)
    )


def intersect(one: Box, other: Box) -> tuple[Range, ...] | None:
    """What two boxes of the same array have in common; None if that is nothing."""
    pairs = zip(one, other, strict=True)
    found = tuple((max(low, first), min(high, last)) for (low, high), (first, last) in pairs)
    return found if all(low < high for low, high in found) else None


def boxes(shape: Sequence[int], max_elements: int) -> Iterator[Box]:
    """Cuts an array into boxes of at most so many elements, each contiguous in C order."""
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
