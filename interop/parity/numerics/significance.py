"""Significance: thresholds of errors that correct results exceed with a given probability.

The truth is the reference in float64. Evaluations of the reference with simulated rounding are
other draws of the same error. A result passes if its error could be one more draw.

The squared length of an error vector with many independent parts hardly varies between draws; that
of one with a single part varies as the square of a normal number. Two independent draws tell which
it is: the expected squared cosine of the angle between them is one over the number of effective
parts. With that many degrees of freedom, the ratio of squared lengths follows Fisher's F
distribution (Satterthwaite, 1946, "An approximate distribution of estimates of variance
components").
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2
from scipy.stats import f as fisher

from jaxllm.deviation import norm

# The chance that a correct model fails, for a whole report: half of it is shared by up to 10,000
# arrays, half by up to 100 single numbers, such as losses.
FALSE_ALARMS = 1e-3
CHANCE_OF_ARRAY = FALSE_ALARMS / 2 / 10_000
CHANCE_OF_NUMBER = FALSE_ALARMS / 2 / 100

# The chance that errors have fewer independent parts than they are taken to have.
DOUBT = 0.05

# Length of a sketch. Angles, and so the number of parts, are not known more closely than this. A
# prime, so that the elements of one column do not all go to the same place.
SKETCH = 1021


class ErrorVector(NamedTuple):
    """The error of a result: its length, and a projection that keeps angles to other errors.

    The projection is a count sketch (Charikar, Chen and Farach-Colton, 2002): elements are added
    with random signs. It takes the place of arrays as large as the model.
    """

    length: float
    sketch: np.ndarray


class Spread(NamedTuple):
    """The rounding errors of a result, as absolute L2 norms."""

    reference: float  # of the reference in float32
    scale: float  # root mean square of the draws; at least that of the reference
    limit: float  # what the error of a correct result exceeds at the given chance only


def error_of(result: ArrayLike, truth: ArrayLike) -> ErrorVector:
    """Returns the error of a result."""
    error = np.subtract(result, truth, dtype=np.float64).ravel()
    if error.size <= SKETCH:
        return ErrorVector(norm(error), error)
    signs = np.random.default_rng(error.size).integers(0, 2, error.size, np.int8)
    signed = np.pad(error * (2 * signs - 1), (0, -error.size % SKETCH))
    return ErrorVector(norm(error), signed.reshape(-1, SKETCH).sum(axis=0))


def spread(reference: float, draws: Sequence[ErrorVector], chance: float) -> Spread:
    """Measures the rounding errors of a result.

    Args:
        reference: length of the error of the reference in float32.
        draws: errors with simulated rounding; at least two.
        chance: the chance that a correct result exceeds the limit.
    """
    scale = max(reference, math.sqrt(np.mean([draw.length**2 for draw in draws])))
    if not math.isfinite(scale) or not all(math.isfinite(draw.length) for draw in draws):
        return Spread(reference, math.inf, math.inf)
    parts = _parts([draw.sketch for draw in draws])
    return Spread(reference, scale, scale * _quantile(parts, parts * len(draws), chance))


def _parts(errors: Sequence[np.ndarray]) -> float:
    """Returns a number of independent parts that errors have at least, from their angles.

    The squared cosine of two vectors with N parts is about a squared normal number divided by N.
    """
    size = float(np.size(errors[0]))
    lengths = [norm(error) for error in errors]
    cosines = [
        float(np.vdot(a, b)) / (x * y)
        for (a, x), (b, y) in itertools.combinations(zip(errors, lengths, strict=True), 2)
        if x and y
    ]
    if size <= 1 or not cosines:
        return 1.0
    squares = max(float(np.square(cosines).sum()), 1e-300)
    return float(np.clip(chi2.ppf(DOUBT, len(cosines)) / squares, 1.0, size))


def _quantile(parts: float, known: float, chance: float) -> float:
    """Returns the ratio of one error to the draws' root mean square that only chance exceeds.

    Args:
        parts: degrees of freedom of the error.
        known: degrees of freedom of the draws together.
        chance: the chance.
    """
    return math.sqrt(fisher.isf(chance, parts, known))
