"""Fiducial limits: how large one more error may be, given what its draws have along its direction.

Draws that are independent of an error have components along it that are exactly normal, whatever
the spectrum of the errors; the sum of their squares, divided by the variance v of errors in that
direction, follows a chi-squared distribution. So it says which v are plausible (Fisher, 1935, "The
fiducial argument in statistical inference"). An error whose own direction has the share v of all
variance is one of at most 1/v such parts, and its squared length varies no more than a chi-squared
number with 1/v degrees of freedom. With a single direction this is the t test; with many, errors
hardly vary. For spectra in between, the chance is at most doubled.
"""

import math
from functools import cache

import numpy as np
from scipy.stats import chi2

SPECTRA = 2.0  # how many times the chance may be exceeded, over spectra
SHARES = np.geomspace(1e-6, 1, 61)  # of the variance along the error, at which factors are computed
NODES = 400  # of the integral over plausible variances
STEPS = 45  # of the bisection


def share_along(error: np.ndarray, draws: np.ndarray) -> float:
    """Returns the share of the draws' squared length that lies along an error.

    Args:
        error: a vector, S; not zero.
        draws: errors to compare it with, KS; not all zero.
    """
    error, draws = np.asarray(error, np.float64), np.asarray(draws, np.float64)
    along_K = draws @ error / np.linalg.norm(error)
    return float(np.square(along_K).sum() / np.square(draws).sum())


def fiducial_factor(share: float, count: int, chance: float) -> float:
    """Returns how many times the root mean square of draws one more is by chance only.

    Args:
        share: the share of the draws' squared length along the error.
        count: the number of draws; at least two.
        chance: the chance that one more error, of whatever spectrum, is larger.
    """
    factors = _log_factors(count, chance / SPECTRA)
    return math.exp(np.interp(math.log(max(share, SHARES[0])), np.log(SHARES), factors))


@cache
def _log_factors(count: int, chance: float) -> np.ndarray:
    """Returns the logarithm of the factor at each of `SHARES`, by bisection."""
    low, high = np.zeros(len(SHARES)), np.full(len(SHARES), math.log(1e15))
    for _ in range(STEPS):
        middle = (low + high) / 2
        is_common = _chance_of(np.exp(2 * middle), count) > chance
        low, high = np.where(is_common, middle, low), np.where(is_common, high, middle)
    return high


def _chance_of(ratio_S: np.ndarray, count: int) -> np.ndarray:
    """Returns the chance of ratios of squared lengths, one for each of `SHARES`."""
    ends = np.geomspace(1e-14, count + 100, NODES + 1)
    lower = chi2.cdf(ends, count)
    weights, middles = np.diff(lower), np.sqrt(ends[1:] * ends[:-1])
    variance_SN = count * SHARES[:, None] / middles
    beyond_SN = chi2.sf(ratio_S[:, None] / variance_SN, np.maximum(1, 1 / variance_SN))
    found: np.ndarray = lower[0] + beyond_SN @ weights
    return found
