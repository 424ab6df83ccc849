"""Error of arrays relative to a reference, and the tolerance that rounding noise justifies."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Rounding noise is measured by computing a quantity in other, equally valid ways; the largest of
# their errors is the noise floor. Correct implementations had errors of at most twice the floor,
# over widths of 32 to 4096, 1 to 32 layers and weights of standard deviation 0.02 to 0.3.
NOISE_FACTOR = 4.0

# Sixteen float32 roundings. No implementation can be held to less, however low the measured floor.
MIN_THRESHOLD = 16 * 2.0**-24

# Upper bound on the tolerance of gradients, moments, updates and losses. A quantity that needs more
# is too ill-conditioned for float32 to tell a bug from noise.
MAX_TRAINING_THRESHOLD = 1e-4

# A gradient that differs by a tenth when computed in another way is the remainder of cancelling
# sums, such as the gradient of a key bias without RoPE. Its error is then measured relative to the
# norm of all gradients together.
NOISE_ONLY = 0.1


class Deviation(NamedTuple):
    """Relative L2 error of a quantity, and the noise floor of its reference."""

    error: float
    floor: float  # largest error of the reference when computed in other ways
    relative_to: str = "own"  # whose norm divides: its "own", or that of "all" gradients


def deviation(ours: ArrayLike, reference: ArrayLike, others: Iterable[ArrayLike]) -> Deviation:
    """Returns the relative L2 error of `ours` and the noise floor.

    Args:
        ours: a number or an array.
        reference: the same quantity as the reference computes it.
        others: the reference computed in other, equally valid ways; not empty.
    """
    floor = max(relative_l2(other, reference) for other in others)
    return Deviation(relative_l2(ours, reference), floor)


def gradient_deviation(
    ours: np.ndarray, reference: np.ndarray, others: Sequence[np.ndarray], whole: float
) -> Deviation:
    """Returns the deviation of a parameter's gradient, or of one of its Adam moments.

    A gradient whose noise floor exceeds `NOISE_ONLY` is measured relative to `whole`, the joint
    norm over all parameters, instead of its own norm.
    """
    found = deviation(ours, reference, others)
    if found.floor > NOISE_ONLY and whole > 0:
        error, *floors = (norm(difference(x, reference)) / whole for x in (ours, *others))
        return Deviation(error, max(floors), "all")
    return found


def update_deviation(
    ours: np.ndarray, reference: np.ndarray, others: Sequence[np.ndarray], parameter: np.ndarray
) -> Deviation:
    """Returns the deviation of a parameter's update, or of some elements of it.

    Args:
        ours: the update.
        reference: the reference's update.
        others: the reference's update computed in other, equally valid ways.
        parameter: the parameter itself, at the same elements.
    """
    found = deviation(ours, reference, others)
    # The update is the difference of two parameters that were both rounded.
    halves, size = 0.5 * np.spacing(np.abs(parameter)), norm(reference)
    return found._replace(floor=max(found.floor, norm(halves) / size if size else 0.0))


def exceeds_noise(gradient: np.ndarray, others: Iterable[np.ndarray], times: float) -> np.ndarray:
    """Returns a mask of the gradient elements that exceed the noise by a factor of `times`.

    Adam divides each element by its size, so the update of an element that is only noise is noise
    too.
    """
    noise = max(max_abs(other, gradient) for other in others)
    return np.abs(gradient) > times * noise


def relative_l2(ours: ArrayLike, reference: ArrayLike) -> float:
    """Returns `|ours - reference| / |reference|` over all elements; 0, not NaN, if both are 0."""
    return relative(norm(difference(ours, reference)), norm(reference))


def relative(distance: float, size: float) -> float:
    """Returns `distance / size`. If `size` is 0: 0 for no distance, otherwise infinity."""
    if size == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / size


def max_abs(ours: ArrayLike, reference: ArrayLike) -> float:
    """Returns the largest absolute difference of two elements."""
    return float(np.max(np.abs(difference(ours, reference))))


def joint_norm(arrays: Iterable[np.ndarray]) -> float:
    """Returns the L2 norm of several arrays taken together."""
    return math.hypot(*map(norm, arrays))


def norm(x: ArrayLike) -> float:
    """Returns the L2 norm over all elements, computed in float64."""
    # Not `np.linalg.norm`: its many threads wait for each other on machines with few cores.
    return math.sqrt(float(np.square(np.asarray(x, np.float64)).sum()))


def difference(ours: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """Returns `ours - reference` in float64; NaN where both are the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.asarray(ours, np.float64) - np.asarray(reference, np.float64)


def training_threshold(floor: float) -> float:
    """Returns the tolerance of gradients, moments, updates and losses for a noise floor."""
    return bounded_threshold(floor, MAX_TRAINING_THRESHOLD)


def bounded_threshold(floor: float, most: float) -> float:
    """Returns the tolerance of a relative error for a noise floor, at most `most`."""
    return min(max(NOISE_FACTOR * floor, MIN_THRESHOLD), most)
