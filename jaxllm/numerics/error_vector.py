"""Error vectors: lengths of errors, and sketches that keep the angles between them."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .distance import norm

# Length of a sketch. Angles, and so the number of parts, are not known more closely than this. A
# prime, so that the elements of one column do not all go to the same place.
SKETCH = 1021
ROWS = 256  # of this length at once


class ErrorVector(NamedTuple):
    """The error of a result: its length, and a projection that keeps angles to other errors.

    The projection is a count sketch (Charikar, Chen and Farach-Colton, 2002): elements are added
    with random signs. It takes the place of arrays as large as the model.
    """

    length: float
    sketch: np.ndarray


def error_of(result: ArrayLike, *truth: ArrayLike) -> ErrorVector:
    """Returns the error of a result, whose truth is a sum of arrays of its shape, or zero."""
    given = [np.asarray(x) for x in (result, *truth)]
    if len(shapes := {x.shape for x in given}) > 1:
        raise ValueError(f"arrays of different shapes are compared: {shapes}")
    parts, size = [x.reshape(-1) for x in given], given[0].size
    if size <= SKETCH:
        error = _difference(parts, slice(None))
        return ErrorVector(norm(error), _narrow(error))
    squares, sketch = 0.0, np.zeros(SKETCH)
    for block, start in enumerate(range(0, size, ROWS * SKETCH)):  # in float64 it would be large
        error = _difference(parts, slice(start, start + ROWS * SKETCH))
        squares += float(np.square(error).sum())
        rows = np.pad(error, (0, -error.size % SKETCH)).reshape(-1, SKETCH)
        sketch += np.einsum("rs,rs->s", _signs(block)[: len(rows)], rows)
    return ErrorVector(math.sqrt(squares), _narrow(sketch))


def _narrow(sketch: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # `spread` asks for finite numbers
        return sketch.astype(np.float32)


def _difference(parts: Sequence[np.ndarray], here: slice) -> np.ndarray:
    result, *truth = (part[here] for part in parts)
    error = np.array(result, np.float64)
    for part in truth:
        error -= part
    return error


def _signs(block: int) -> np.ndarray:
    """Returns a random sign for each element of a block: others for each of the first 1021."""
    return _sign_table()[:, block % SKETCH : block % SKETCH + SKETCH]


@cache
def _sign_table() -> np.ndarray:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (ROWS, SKETCH))
    return np.concatenate([signs, signs], axis=1)
