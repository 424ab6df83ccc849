"""How far two arrays are apart, and how far rounding alone may put them."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Rounding noise is measured by computing a thing in other ways that are just as right. Honest
# computations were at most twice as far from it as the farthest of these ways, over widths of 32 to
# 4096, 1 to 32 layers and weights of standard deviation 0.02 to 0.3.
NOISE_FACTOR = 4.0

# Sixteen roundings: what no one can be held to, however little noise was measured.
MIN_THRESHOLD = 16 * 2.0**-24

# Of gradients, moments, updates and losses: beyond this they are too ill-conditioned for float32 to
# tell a bug from noise.
MAX_TRAINING_THRESHOLD = 1e-4

# A gradient that differs by a tenth when it is computed in another way is what is left of sums that
# cancel, such as that of a key's bias without RoPE. It counts as a part of all.
NOISE_ONLY = 0.1


class Deviation(NamedTuple):
    """How far something is from its reference."""

    error: float
    floor: float  # how far the reference is from itself, computed in other ways
    relative_to: str = "own"  # norm; "all" of a gradient that is nothing but noise


def deviation(ours: ArrayLike, reference: ArrayLike, others: Iterable[ArrayLike]) -> Deviation:
    """Numbers or arrays, by their relative L2; `others` are the reference in other ways."""
    floor = max(relative_l2(other, reference) for other in others)
    return Deviation(relative_l2(ours, reference), floor)


def gradient_deviation(
    ours: np.ndarray, reference: np.ndarray, others: Sequence[np.ndarray], whole: float
) -> Deviation:
    """A parameter's gradient, or a moment of it; `whole` is the norm of those of all parameters."""
    found = deviation(ours, reference, others)
    if found.floor > NOISE_ONLY and whole > 0:
        error, *floors = (norm(difference(x, reference)) / whole for x in (ours, *others))
        return Deviation(error, max(floors), "all")
    return found


def update_deviation(
    ours: np.ndarray, reference: np.ndarray, others: Sequence[np.ndarray], parameter: np.ndarray
) -> Deviation:
    """A parameter's update, or some elements of it, and the same of the parameter."""
    found = deviation(ours, reference, others)
    # The update is the difference of two parameters, each of which was rounded.
    halves, size = 0.5 * np.spacing(np.abs(parameter)), norm(reference)
    return found._replace(floor=max(found.floor, norm(halves) / size if size else 0.0))


def exceeds_noise(gradient: np.ndarray, others: Iterable[np.ndarray], times: float) -> np.ndarray:
    """Which elements of a gradient are so many times its noise: their updates are not noise.

    Adam divides by their size, so that the update of an element which is noise is noise as well.
    """
    noise = max(max_abs(other, gradient) for other in others)
    return np.abs(gradient) > times * noise


def relative_l2(ours: ArrayLike, reference: ArrayLike) -> float:
    """`|ours - reference| / |reference|` over all elements. Equal zeros are 0 apart, not NaN."""
    return relative(norm(difference(ours, reference)), norm(reference))


def relative(distance: float, size: float) -> float:
    """`distance / size`; where there is no size, 0 if there is no distance either."""
    if size == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / size


def max_abs(ours: ArrayLike, reference: ArrayLike) -> float:
    """The largest difference of two elements."""
    return float(np.max(np.abs(difference(ours, reference))))


def joint_norm(arrays: Iterable[np.ndarray]) -> float:
    """The norm of several arrays as if they were one."""
    return math.hypot(*map(norm, arrays))


def norm(x: ArrayLike) -> float:
    """The root of the sum of squares, in float64."""
    # Not `np.linalg.norm`, whose many threads wait for each other where there are few cores.
    return math.sqrt(float(np.square(np.asarray(x, np.float64)).sum()))


def difference(ours: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """`ours - reference` in float64; two infinities are NaN apart."""
    with np.errstate(invalid="ignore"):
        return np.asarray(ours, np.float64) - np.asarray(reference, np.float64)


def threshold(floor: float, most: float = MAX_TRAINING_THRESHOLD) -> float:
    """The relative error that is still noise where noise itself is `floor`."""
    return min(max(NOISE_FACTOR * floor, MIN_THRESHOLD), most)
