"""How far two arrays are apart, and how far rounding alone may put them."""

import math

import numpy as np

# Rounding noise is measured by computing a thing in other ways that are just as right. Honest
# computations were at most twice as far from it as the farthest of these ways, over widths of 32 to
# 4096, 1 to 32 layers and weights of standard deviation 0.02 to 0.3.
NOISE_FACTOR = 4.0

# Sixteen roundings: what no one can be held to, however little noise was measured.
LEAST = 16 * 2.0**-24

# Of gradients, moments, updates and losses: beyond this they are too ill-conditioned for float32 to
# tell a bug from noise.
MOST_IN_TRAINING = 1e-4


def relative_l2(ours: np.ndarray, reference: np.ndarray) -> float:
    """`|ours - reference| / |reference|` over all elements. Equal zeros are 0 apart, not NaN."""
    distance, size = norm(difference(ours, reference)), norm(reference)
    if size == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / size


def norm(x: np.ndarray) -> float:
    """The root of the sum of squares, in float64."""
    # Not `np.linalg.norm`, whose many threads wait for each other where there are few cores.
    return math.sqrt(float(np.square(np.asarray(x, np.float64)).sum()))


def difference(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`ours - reference` in float64; two infinities are NaN apart."""
    with np.errstate(invalid="ignore"):
        return np.asarray(ours, np.float64) - np.asarray(reference, np.float64)


def threshold(floor: float, most: float = MOST_IN_TRAINING) -> float:
    """The relative error that is still noise where noise itself is `floor`."""
    return min(max(NOISE_FACTOR * floor, LEAST), most)
