"""Chances of one in a hundred million, measured by importance sampling.

A correct error is rejected where the draws have little of a direction by chance and the error has
much of it. Both are made common here, and every trial is weighted by how rare it truly is.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

ERROR_SCALES = (1, 2, 4, 8, 20, 60)  # that the error's part in one direction is drawn with
DRAW_SCALES = (1, 0.5, 0.2, 0.07, 0.02)  # that the draws' parts in it are drawn with
SCALES = np.array(list(itertools.product(ERROR_SCALES, DRAW_SCALES)))

Rejects = Callable[[np.ndarray, np.ndarray], bool]  # of draws, KS, and one error more, S


def chance_of(
    rejects: Rejects, shares: Sequence[float], count: int, trials: int, size: int = 300
) -> tuple[float, float]:
    """Returns the chance that an error is rejected, and the standard error of that.

    Args:
        rejects: judges one error by draws of the same distribution.
        shares: of the variance, in some directions; the others share what is left.
        count: the number of draws.
        trials: how many errors are judged.
        size: the number of directions.
    """
    rng, deviations = np.random.default_rng(0), np.sqrt(shares)
    rest = np.sqrt(max(0.0, 1 - sum(shares)) / size)
    weights = np.zeros(trials)
    for trial in range(trials):
        draws, error = rest * rng.standard_normal((count, size)), rest * rng.standard_normal(size)
        wide_KD = rng.standard_normal((count, len(shares)))
        wide_D = rng.standard_normal(len(shares))
        chosen, (error_scale, draw_scale) = rng.integers(len(shares)), rng.choice(SCALES)
        wide_D[chosen] *= error_scale
        wide_KD[:, chosen] *= draw_scale
        draws[:, : len(shares)], error[: len(shares)] = deviations * wide_KD, deviations * wide_D
        if rejects(draws, error):
            weights[trial] = _weight(wide_D, np.square(wide_KD).sum(0), count)
    return float(weights.mean()), float(weights.std() / np.sqrt(trials))


def _weight(wide_D: np.ndarray, squares_D: np.ndarray, count: int) -> float:
    """Returns how rare these parts are in truth, relative to how often they are drawn."""
    error_scale, draw_scale = SCALES.T
    of_error = np.square(wide_D)[:, None] * (1 - error_scale**-2.0) / 2 - np.log(error_scale)
    of_draws = squares_D[:, None] * (1 - draw_scale**-2.0) / 2 - count * np.log(draw_scale)
    logs = of_error + of_draws
    return float(np.exp(-logs.max()) / np.exp(logs - logs.max()).mean())
