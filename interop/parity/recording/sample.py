"""Which numbers of a recording a pack keeps: some positions, and some elements of what is large."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxllm.interop.parity.numerics.metrics import position_buckets

# The golden ratio's multiples fall everywhere alike, and never into step with an array's rows.
GOLDEN = 0.6180339887498949


@dataclasses.dataclass(frozen=True)
class Sample:
    """The same numbers of every array of a shape, however often it is taken."""

    positions: tuple[int, ...]  # of each row
    features: int  # of each position, at most

    def of(
        self, x: np.ndarray, shape_BT: tuple[int, ...], mask_BT: np.ndarray | None, *, whole: bool
    ) -> np.ndarray:
        """Of an activation BT..., a row for each position that is not padding.

        Each with some of its features, or the `whole` of them. Of a pooled sequence there is one.
        """
        if x.shape[:2] == shape_BT:
            keeps_BT = np.zeros(shape_BT, bool)
            keeps_BT[:, [at for at in self.positions if at < shape_BT[1]]] = True
            x = x[keeps_BT if mask_BT is None else keeps_BT & (mask_BT != 0)]
        if x.ndim == 1 or whole:
            return x
        rows = x.reshape(len(x), -1)
        return rows[:, places(rows.shape[1], self.features)]


def spread_positions(length: int, count: int) -> tuple[int, ...]:
    """So many positions, as many of each bucket that a report tells apart, the last among them."""
    buckets = [(start, stop or length) for start, stop in position_buckets(length)]
    buckets = [(start, min(stop, length)) for start, stop in buckets]
    each = max(1, count // len(buckets))
    found = {length - 1}
    for start, stop in buckets:
        found |= set(np.linspace(start, stop - 1, min(each, stop - start)).round().astype(int))
    return tuple(sorted(map(int, found)))


def places(size: int, count: int) -> np.ndarray:
    """At most `count` of `size` places, in order."""
    if size <= count:
        return np.arange(size)
    return np.unique((size * (np.arange(count) * GOLDEN % 1)).astype(np.int64))


def elements(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """At most `count` elements of each array, flat."""
    return {name: x.reshape(-1)[places(x.size, count)] for name, x in arrays.items()}
