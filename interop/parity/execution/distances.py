"""Distances from the truth: how far the reference's results are from those in float64."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from jaxllm.interop.parity.progress import announce
from jaxllm.interop.parity.report.activation_rows import Error
from jaxllm.numerics.distance import relative
from jaxllm.numerics.error_vector import ErrorVector, error_of
from jaxllm.numerics.judgement import Spread
from jaxllm.numerics.significance import CHANCE_OF_ARRAY, spread

from .float64 import in_float64
from .simulated_rounding import DRAWS, simulated_rounding

Arrays = Mapping[str, np.ndarray]

# How many times the largest error of an element in the draws one element may be off.
ELEMENT_FACTOR = 4.0


@dataclasses.dataclass(frozen=True)
class Distances:
    """The rounding errors of the reference's results, by name.

    Attributes:
        corrections: the results in float64 minus those in float32, as float32.
        draws: the errors of runs with simulated rounding.
    """

    corrections: Arrays
    draws: Mapping[str, Sequence[ErrorVector]]

    @classmethod
    def from_pack(cls, kept: Mapping[str, Any]) -> Self:
        """Restores what `to_pack` returned."""
        draws = {
            name: [ErrorVector(*one) for one in zip(lengths, sketches, strict=True)]
            for name, (lengths, sketches) in kept["draws"].items()
        }
        return cls(kept["corrections"], draws)

    def to_pack(self) -> dict[str, Any]:
        """Returns plain data and arrays."""
        draws = {
            name: (
                [one.length for one in errors],
                np.array([one.sketch for one in errors], np.float32),
            )
            for name, errors in self.draws.items()
        }
        return {"corrections": dict(self.corrections), "draws": draws}

    def spread(self, name: str) -> Spread:
        """Returns the spread of a result's rounding errors."""
        length, sketch = error_of(self.corrections[name])
        return spread(ErrorVector(length, -sketch), self.draws[name], CHANCE_OF_ARRAY)

    def judge(self, name: str, departure: np.ndarray, size: float) -> Error:
        """Judges a result of the JAX model by its distance from the truth.

        Args:
            name: its name.
            departure: the result minus that of the reference in float32.
            size: norm of the result of the reference.
        """
        error, found = error_of(departure, self.corrections[name]), self.spread(name)
        return Error(**error_fields(error, found, size))


def error_fields(error: ErrorVector, found: Spread, size: float) -> dict[str, Any]:
    """Returns the fields that `Error` and `TensorResult` share, relative to `size`."""
    judged = found.judge(error)
    whole = judged.whole_threshold
    return {
        "relative_l2": relative(error.length, size),
        "floor": relative(judged.floor, size),
        "threshold": relative(judged.threshold, size),
        "reference": relative(found.reference, size),
        "outside": None if whole is None else relative(judged.measured, size),
        "whole_threshold": None if whole is None else relative(whole, size),
        "is_suspect": judged.is_suspect,
    }


def measure(
    what: str,
    run: Callable[[], dict[str, np.ndarray]],
    on_draw: Callable[[Arrays, Arrays], None] = lambda departures, corrections: None,
    *,
    draws: int = DRAWS,
) -> Distances:
    """Runs the reference in float64 and with simulated rounding.

    Args:
        what: what is measured, for the progress.
        run: runs the reference; returns its results minus those in float32, as float32.
        on_draw: gets what each run with simulated rounding returned, and the corrections.
        draws: the number of runs with simulated rounding.
    """
    announce(f"{what}: reference in float64")
    with in_float64():
        corrections = run()
    found: dict[str, list[ErrorVector]] = {name: [] for name in corrections}
    for seed in range(draws):
        announce(f"{what}: reference with simulated rounding, {seed + 1} of {draws}")
        with simulated_rounding(seed):
            departures = run()
        for name, errors in found.items():
            errors.append(error_of(departures[name], corrections[name]))
        on_draw(departures, corrections)
        del departures  # frees them before the next run
    return Distances(corrections, found)
