"""Casts to narrower floats: numbers beyond the range, and small ones that become zero."""

import math
import threading
from functools import lru_cache
from typing import NamedTuple

import ml_dtypes
import numpy as np

MOST_LISTED = 5  # arrays that a warning names
Box = tuple[tuple[int, int], ...]


class Narrowed(NamedTuple):
    """An array in another dtype, rounded to nearest, and what became of its numbers."""

    array: np.ndarray
    overflowed: int  # finite numbers beyond the range, which became its limits
    zeroed: int  # numbers that became zero


def clamp(array: np.ndarray, dtype: np.dtype) -> Narrowed:
    """Casts an array, rounded to nearest; finite numbers beyond the range become its limits."""
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    beyond = np.isinf(narrow)
    if beyond.any():
        beyond &= np.isfinite(array)
        limit = np.array(ml_dtypes.finfo(dtype).max, dtype)
        narrow[beyond] = np.copysign(limit, narrow[beyond])
    zeroed = _count_zeroed(array, narrow) if _loses_small(array.dtype, dtype) else 0
    return Narrowed(narrow, int(np.count_nonzero(beyond)), zeroed)


def _count_zeroed(array: np.ndarray, narrow: np.ndarray) -> int:
    bits = narrow.view(f"u{narrow.itemsize}")
    zero = (bits << 1) == 0  # without the sign
    return int(np.count_nonzero(array[zero])) if zero.any() else 0


@lru_cache
def _loses_small(wide: np.dtype, narrow: np.dtype) -> bool:
    """Whether numbers other than zero can become zero.

    Subnormal numbers do not count: XLA computes with them as zeros.
    """
    is_whole = wide.kind in "biu"
    return not is_whole and ml_dtypes.finfo(narrow).minexp > ml_dtypes.finfo(wide).minexp


class Zeroed:
    """Counts the numbers of arrays that become zero in a narrower dtype; threads may add."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self._counts: dict[str, dict[Box, int]] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, name: str, shape: tuple[int, ...], count: int, box: Box = ()) -> None:
        """Counts the numbers of an array, or of a box; one that is read again counts once."""
        if count:
            with self._lock:
                self._counts.setdefault(name, {})[box] = count
                self._sizes[name] = math.prod(shape)

    def describe(self) -> str:
        """Returns a warning that names the arrays that lose most of their numbers, or ""."""
        counts = {name: sum(boxes.values()) for name, boxes in self._counts.items()}
        if not counts:
            return ""
        worst = sorted(counts, key=lambda name: -counts[name] / self._sizes[name])
        lines = [f"{n}: {counts[n]:,} of {self._sizes[n]:,}" for n in worst[:MOST_LISTED]]
        if (more := len(counts) - MOST_LISTED) > 0:
            lines.append(f"and fewer of {more:,} other arrays")
        limit = float(ml_dtypes.finfo(self.dtype).smallest_subnormal) / 2
        head = f"underflow: {sum(counts.values()):,} become zero in {self.dtype}, up to {limit:.3g}"
        return "\n  ".join([f"{head} in magnitude", *lines])
