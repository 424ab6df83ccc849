"""Significance: thresholds of errors that correct results exceed with a given probability.

The truth is the reference in float64. Evaluations of the reference with simulated rounding are
other draws of the same error. A result passes if its error could be one more draw. Where there is
no truth, equivalent evaluations are compared with each other.

A few draws give an estimate. The squared length of an error vector with many independent parts
hardly varies; that of one with a single part varies as the square of a normal number. Two
independent draws tell which it is: the expected squared cosine of the angle between them is one
over the number of effective parts. With that many degrees of freedom, the ratio of squared lengths
follows Fisher's F distribution (Satterthwaite, 1946, "An approximate distribution of estimates of
variance components").

The estimate can be too low, where one direction has a part of the variance of which the few draws
had little by chance. So an error beyond it is only suspect, unless it is also beyond the fiducial
limit (`fiducial`). That holds for all spectra; with few draws it is wide, with `ENOUGH` it is
narrow and decides.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2
from scipy.stats import f as fisher

from .distance import norm
from .error_vector import ErrorVector, error_of
from .judgement import Spread

# The chance that a correct model fails, for a whole report: half of it is shared by up to 20,000
# arrays, half by up to 100 single numbers, such as losses.
FALSE_ALARMS = 1e-3
CHANCE_OF_ARRAY = FALSE_ALARMS / 2 / 20_000
CHANCE_OF_NUMBER = FALSE_ALARMS / 2 / 100

# The chance that errors have fewer independent parts than they are taken to have.
PARTS_ERROR_RATE = FALSE_ALARMS

# If chance alone may make an error this many times the root mean square of the draws, it is also
# judged without the direction that the draws share.
FEW = 3.0

# If simulated rounding adds less than this share of the reference's own rounding, it does not know
# an operation that rounds. Errors are then only compared with the size of the reference's.
LEAST_ADDED = 0.5

# A gradient of which rounding changes a tenth is the remainder of cancelling sums, such as the
# gradient of a key bias without RoPE. It is measured relative to the norm of all gradients.
NOISE_ONLY = 0.1

# A row of which less than this share is compared cannot tell what the others are.
LEAST_COMPARED = 0.01

# What is left without the direction is taken to be at least this, relative to the whole.
LEAST_REST = 2.0**-10


class Consensus(NamedTuple):
    """Equivalent evaluations of a result, whose truth is not known.

    Attributes:
        mean: of the evaluations, in float64.
        num_evaluations: their number.
        spread: of their errors.
    """

    mean: np.ndarray
    num_evaluations: int
    spread: Spread

    def error_of(self, result: ArrayLike) -> ErrorVector:
        """Returns the contrast of one more evaluation."""
        return _contrast(result, self.mean, self.num_evaluations)


def consensus(evaluations: Sequence[ArrayLike], chance: float) -> Consensus:
    """Measures how equivalent evaluations of a result vary.

    The contrast of each with the mean of those before it has the distribution of one error, and is
    independent of the other contrasts (Helmert, 1876).

    Args:
        evaluations: at least three.
        chance: the chance that one more evaluation exceeds one of the limits.
    """
    mean = np.asarray(evaluations[0], np.float64)
    contrasts = []
    for count, evaluation in enumerate(evaluations[1:], start=1):
        contrasts.append(_contrast(evaluation, mean, count))
        mean = mean + (np.asarray(evaluation, np.float64) - mean) / (count + 1)
    return Consensus(mean, len(evaluations), _spread_of(contrasts, 0.0, chance))


def _contrast(result: ArrayLike, mean: np.ndarray, count: int) -> ErrorVector:
    factor = math.sqrt(count / (count + 1))
    return error_of(factor * np.asarray(result, np.float64), factor * mean)


def spread(reference: ErrorVector, draws: Sequence[ErrorVector], chance: float) -> Spread:
    """Measures the rounding errors of a result.

    The reference in float32 counts as one more draw, unless its error is larger than draws explain.

    Args:
        reference: the error of the reference in float32.
        draws: errors with simulated rounding; at least two.
        chance: the chance that a correct result exceeds one of the limits.
    """
    sketches = _sketches([reference, *draws])
    if sketches is None:
        return Spread(reference.length, math.inf, math.inf)
    # In a single step, the draws also have the rounding of the reference itself in common.
    added = sketches[1:] - sketches[0]
    if norm(added) < LEAST_ADDED * math.sqrt(len(draws)) * reference.length:  # an unknown operation
        scale = reference.length
        return Spread(scale, scale, scale * _factor(1.0, len(draws), chance / 2))
    parts = max(_parts(sketches), _parts(added))
    scale = _root_mean_square(draws)
    factor = _factor(parts, len(draws), chance / 2)
    if reference.length > scale * factor:
        return Spread(reference.length, reference.length, reference.length * factor)
    return _spread_of([reference, *draws], reference.length, chance, parts)


def _spread_of(
    errors: Sequence[ErrorVector], reference: float, chance: float, parts: float | None = None
) -> Spread:
    """Returns the spread of errors that are draws of one distribution.

    Args:
        errors: at least two.
        reference: the length of that of the reference.
        chance: the chance that one more exceeds one of the limits.
        parts: the number of independent parts; by default from the angles between the errors.
    """
    sketches = _sketches(errors)
    if sketches is None:
        return Spread(reference, math.inf, math.inf)
    scale = _root_mean_square(errors)
    factor = _factor(parts or _parts(sketches), len(errors), chance / 2)
    found = Spread(reference, scale, scale * factor, draws=sketches, chance=chance)
    if found.limit <= FEW * scale or not scale or sketches.shape[1] <= 2 * len(errors):
        return found
    return _without_direction(found, sketches, chance / 2)


def _sketches(errors: Sequence[ErrorVector]) -> np.ndarray | None:
    """Returns the sketches of errors in float64, or None if one is not finite."""
    sketches = np.stack([error.sketch for error in errors]).astype(np.float64)
    is_finite = np.isfinite([error.length for error in errors]).all()
    return sketches if is_finite and np.isfinite(sketches).all() else None


def _without_direction(found: Spread, sketches: np.ndarray, chance: float) -> Spread:
    """Adds the limit for errors without their main direction, if it is lower."""
    _, sizes, directions = np.linalg.svd(sketches, full_matrices=False)
    # Any basis of what is left will do but this one, whose vectors are orthogonal.
    mixing, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(sizes) - 1,) * 2))
    rests = mixing @ (sizes[1:, None] * directions[1:])
    rest_scale = norm(rests) / math.sqrt(len(rests)) + LEAST_REST * found.scale
    rest_limit = rest_scale * _factor(_parts(rests), len(rests), chance)
    if rest_limit >= found.limit:
        return found
    return found._replace(
        direction=directions[0],
        along=float(sizes[0]),
        rest_scale=rest_scale,
        rest_limit=rest_limit,
        rests=rests,
    )


def _root_mean_square(errors: Sequence[ErrorVector]) -> float:
    return math.sqrt(np.mean(np.square([error.length for error in errors])))


def _factor(parts: float, count: int, chance: float) -> float:
    """Returns how many times the root mean square of `count` errors one more is by chance only."""
    return math.sqrt(fisher.isf(chance, parts, parts * count))


def _parts(errors: np.ndarray) -> float:
    """Returns a number of independent parts that errors have at least, from their angles.

    The squared cosine of two vectors with N parts is about a squared normal number divided by N.
    """
    size = float(errors.shape[1])
    lengths = [norm(error) for error in errors]
    cosines = [
        float(np.vdot(a, b)) / (x * y)
        for (a, x), (b, y) in itertools.combinations(zip(errors, lengths, strict=True), 2)
        if x and y
    ]
    if size <= 1 or not cosines:
        return 1.0
    squares = max(float(np.square(cosines).sum()), 1e-300)
    return float(np.clip(chi2.ppf(PARTS_ERROR_RATE, len(cosines)) / squares, 1.0, size))
