"""Distances between arrays: L2 norms of differences, absolute and relative to a reference."""

import math

import numpy as np
from numpy.typing import ArrayLike

BLOCK = 2**18  # elements at once, whose float64 differences stay in the processor's cache


def relative_l2(ours: ArrayLike, reference: ArrayLike) -> float:
    """Returns `|ours - reference| / |reference|` over all elements; 0, not NaN, if both are 0."""
    return relative(norm(difference(ours, reference)), norm(reference))


def relative(distance: float, size: float) -> float:
    """Returns `distance / size`. If `size` is 0: 0 for no distance, otherwise infinity."""
    if size == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / size


def max_abs(ours: ArrayLike, reference: ArrayLike) -> float:
    """Returns the largest absolute difference of two elements of arrays of one shape."""
    a, b = np.asarray(ours).reshape(-1), np.asarray(reference).reshape(-1)
    parts = (slice(start, start + BLOCK) for start in range(0, a.size, BLOCK))
    return float(np.max([np.max(np.abs(difference(a[part], b[part]))) for part in parts]))


def norm(x: ArrayLike) -> float:
    """Returns the L2 norm over all elements, computed in float64."""
    # Not `np.linalg.norm`: its many threads wait for each other on machines with few cores.
    return math.sqrt(float(np.square(np.asarray(x, np.float64)).sum()))


def difference(ours: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """Returns `ours - reference` in float64; NaN where both are the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.asarray(ours, np.float64) - np.asarray(reference, np.float64)
