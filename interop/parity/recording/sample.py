"""Sampling for packs: which positions and which elements of large arrays are kept."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxllm.interop.parity.numerics.metrics import position_buckets

# Multiples of the golden ratio, modulo 1, are spread evenly and never align with an array's rows.
GOLDEN = 0.6180339887498949


@dataclasses.dataclass(frozen=True)
class Sample:
    """A deterministic sample: the same elements of all arrays of one shape."""

    positions: tuple[int, ...]  # kept of each row
    features: int  # the most elements kept of each position

    def of(
        self, x: np.ndarray, shape_BT: tuple[int, ...], mask_BT: np.ndarray | None, *, whole: bool
    ) -> np.ndarray:
        """Samples an activation, BT...

        Args:
            x: the activation. If its shape does not start with `shape_BT`, as for pooled
                sequences, its first dimension is kept whole.
            shape_BT: shape of the inputs.
            mask_BT: 0 at padding, which is dropped; None: no padding.
            whole: whether to keep all elements of a position.

        Returns:
            One row for each kept position.
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
    """Returns about `count` positions, spread evenly over the position ranges of reports.

    The last position is always among them, and every range has at least one.
    """
    buckets = [(start, stop or length) for start, stop in position_buckets(length)]
    buckets = [(start, min(stop, length)) for start, stop in buckets]
    each = max(1, count // len(buckets))
    found = {length - 1}
    for start, stop in buckets:
        found |= set(np.linspace(start, stop - 1, min(each, stop - start)).round().astype(int))
    return tuple(sorted(map(int, found)))


def places(size: int, count: int) -> np.ndarray:
    """Returns at most `count` indices into `size` elements, in ascending order."""
    if size <= count:
        return np.arange(size)
    return np.unique((size * (np.arange(count) * GOLDEN % 1)).astype(np.int64))


def elements(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns at most `count` elements of each array, flattened."""
    return {name: x.reshape(-1)[places(x.size, count)] for name, x in arrays.items()}
