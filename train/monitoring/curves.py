"""Curves of a run: metrics over the steps, and smoothed ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .metrics import Record

LARGEST = 1e100  # of which a chart can still hold differences and margins
SMOOTHING = 0.02  # of a run's length: the time constant of the average


class Curve(NamedTuple):
    """The values of one metric, and the steps at which it was logged."""

    steps: np.ndarray
    values: np.ndarray


def curve(records: Sequence[Record], name: str) -> Curve:
    """Returns the values of a metric, without those that are not finite or cannot be drawn."""
    found = [(record["step"], record[name]) for record in records if name in record]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    kept = (np.abs(values) < LARGEST) & (np.abs(steps) < LARGEST)
    return Curve(steps[kept], values[kept])


def smoothed(raw: Curve) -> Curve:
    """Returns an exponential moving average over a fiftieth of the steps, without a start bias.

    The average weighs a value by `exp(-distance / width)`, divided by the sum of the weights, so
    that its beginning is not drawn towards zero.
    """
    if len(raw.steps) < 3:
        return raw
    width = max(SMOOTHING * (raw.steps[-1] - raw.steps[0]), 1e-9)
    decay = np.exp(-np.diff(raw.steps, prepend=raw.steps[0]) / width)
    total = weight = 0.0
    means = np.empty_like(raw.values)
    for index, (keep, value) in enumerate(zip(decay, raw.values, strict=True)):
        total, weight = keep * total + value, keep * weight + 1
        means[index] = total / weight
    return Curve(raw.steps, means)
