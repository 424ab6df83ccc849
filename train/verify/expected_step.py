"""The expected step: what equivalent evaluations of a training step agree on, and how closely."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxllm.numerics.distance import max_abs, norm, relative
from jaxllm.numerics.significance import NOISE_ONLY, Consensus, consensus
from jaxllm.train.checkpoint_arrays import FIRST_MOMENT, SECOND_MOMENT

from .outcomes import Difference
from .variants import Step

# Updates are compared only where the gradient is at least this many times its noise: Adam divides
# by the gradient's own size, so elsewhere the update is noise.
ABOVE_NOISE = 1e4

NUMBERS = {"loss": "loss", "norm of all gradients": "grad_norm"}  # fields of a step by their name
MOMENTS = {FIRST_MOMENT: "first_moment", SECOND_MOMENT: "second_moment"}


class ExpectedStep:
    """The mean of equivalent evaluations of a step, and thresholds for one more.

    Args:
        steps: the evaluations; the first is that of a single device without any changes.
        chance: the chance that a correct step exceeds one of the thresholds: half of it for the
            two numbers, half for all arrays.
    """

    def __init__(self, steps: Sequence[Step], chance: float):
        first = steps[0]
        of_number, of_array = chance / 2 / len(NUMBERS), chance / 2 / (3 * len(first.before))
        self._numbers = {
            what: consensus([getattr(step, field) for step in steps], of_number)
            for what, field in NUMBERS.items()
        }
        self._moments = {
            what: {
                name: consensus([getattr(step, field)[name] for step in steps], of_array)
                for name in first.before
            }
            for what, field in MOMENTS.items()
        }
        self._is_compared = {
            name: _exceeds_noise(found.mean, [step.first_moment[name] for step in steps])
            for name, found in self._moments[FIRST_MOMENT].items()
        }
        self._updates = {
            name: consensus([step.update[name][counts] for step in steps], of_array)
            for name, counts in self._is_compared.items()
        }
        # Numbers are rounded to float32, so that all evaluations may agree by chance. The norm is a
        # sum over arrays in an order that they all share: its errors add up as a random walk.
        self._rounding_of_number = {
            "loss": float(np.spacing(np.float32(first.loss))),
            "grad_norm": math.sqrt(len(first.before))
            * float(np.spacing(np.float32(first.grad_norm))),
        }
        # An update is the difference of two parameters that were both rounded.
        self._rounding = {
            name: norm(0.5 * np.spacing(np.abs(first.before[name][counts])))
            for name, counts in self._is_compared.items()
        }

    def differences(self, step: Step) -> Iterator[Difference]:
        """Yields the differences of a step: loss, norm, then those of each parameter."""
        for what, field in NUMBERS.items():
            found, rounding = self._numbers[what], self._rounding_of_number[field]
            yield _difference(what, "", getattr(step, field), found, rounding=rounding)
        for what, field in MOMENTS.items():
            whole = math.hypot(*(norm(found.mean) for found in self._moments[what].values()))
            for name, found in self._moments[what].items():
                yield _difference(what, name, getattr(step, field)[name], found, whole=whole)
        for name, found in self._updates.items():
            counts = self._is_compared[name]
            share = {"compared": float(counts.mean()), "rounding": self._rounding[name]}
            yield _difference("update", name, step.update[name][counts], found, **share)


def _difference(
    what: str,
    name: str,
    result: Any,
    found: Consensus,
    *,
    whole: float = 0.0,
    rounding: float = 0.0,
    compared: float = 1.0,
) -> Difference:
    """Judges a number or an array.

    Args:
        what: what it is.
        name: the parameter that it belongs to.
        result: its value.
        found: what equivalent evaluations agree on.
        whole: norm of all arrays of this kind.
        rounding: what rounding the result itself adds to the limits of its error.
        compared: the share of the elements that is compared.
    """
    error, spread = found.error_of(result), found.spread.widened(rounding)
    size, relative_to = norm(found.mean), "own"
    if whole and spread.scale > NOISE_ONLY * size:
        size, relative_to = whole, "all"
    judged = spread.judge(error)
    whole = judged.threshold if judged.whole_threshold is None else judged.whole_threshold
    return Difference(
        what=what,
        parameter=name,
        measured=relative(judged.measured, size),
        floor=relative(judged.floor, size),
        threshold=relative(judged.threshold, size),
        highest_threshold=relative(whole, size),
        is_suspect=judged.is_suspect,
        relative_to=relative_to,
        compared=compared,
    )


def _exceeds_noise(gradient: np.ndarray, evaluations: Sequence[np.ndarray]) -> np.ndarray:
    """Returns a mask of the elements of a gradient that are far above their noise."""
    noise = max(max_abs(evaluation, gradient) for evaluation in evaluations)
    return np.abs(gradient) > ABOVE_NOISE * noise
