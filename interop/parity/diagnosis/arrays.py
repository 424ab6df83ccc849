"""Explanations for any activation: scales, biases, rounding, shifts, soft caps, few tokens."""

import itertools
import math
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from jaxllm.interop.parity.numerics import metrics

from .evidence import Evidence, Explanation

MAX_BFLOAT16_ERROR = 2.0**-5  # relative L2: several roundings to bfloat16, of 2 ** -9 each


def scaled(evidence: Evidence) -> Iterator[Explanation]:
    """The reference's output is the model's times a constant."""
    ours, theirs = evidence.ours, evidence.theirs
    ratio = float(np.vdot(ours, theirs) / np.vdot(ours, ours))
    words = f"Looks like a different scale: the reference's is {ratio:.5g} times the model's"
    yield Explanation(ours * ratio, theirs, words + named_ratio(ratio, evidence.sizes))


def named_ratio(ratio: float, sizes: Mapping[str, int]) -> str:
    """Returns the formula in the model's sizes that a ratio equals, in brackets, or ""."""
    roots = {f"sqrt({name})": math.sqrt(size) for name, size in sizes.items()}
    roots |= {
        f"sqrt({one} / {other})": math.sqrt(sizes[one] / sizes[other])
        for one, other in itertools.combinations(sizes, 2)
    }
    values = {**sizes, **roots}
    values |= {f"1 / {name}": 1 / value for name, value in values.items()}
    near = (n for n, value in values.items() if value != 1 and abs(ratio / value - 1) < 1e-3)
    return next((f" ({name})" for name in near), "")


def offset(evidence: Evidence) -> Iterator[Explanation]:
    """The difference is a bias: the same at every token."""
    ours, theirs = evidence.ours, evidence.theirs
    shift = (theirs - ours).mean((0, 1), keepdims=True)
    bias = evidence.parameter("bias")
    if bias is not None:
        yield Explanation(ours - bias, theirs, "Looks like a bias that the reference does not add")
        yield Explanation(ours + bias, theirs, "Looks like a bias that the model does not add")
    yield Explanation(ours + shift, theirs, "Looks like a missing or different bias")


def scaled_by_token(evidence: Evidence) -> Iterator[Explanation]:
    """The reference's output is the model's times a number for each token."""
    ours, theirs = evidence.ours, evidence.theirs
    if ours.ndim > 2:
        axes = tuple(range(2, ours.ndim))
        ratio = (ours * theirs).sum(axes, keepdims=True) / (ours * ours).sum(axes, keepdims=True)
        words = "Each token is scaled by a factor of its own"
        if evidence.name == "mlp":
            words = "Looks like different weights of the experts' outputs: e" + words[1:]
        yield Explanation(ours * ratio, theirs, words)


def rounded(evidence: Evidence) -> Iterator[Explanation]:
    """Only one side's numbers are all bfloat16 values, and rounding explains the error."""
    ours, theirs = evidence.ours, evidence.theirs
    halves = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (ours, theirs)]
    is_half = [np.array_equal(*pair) for pair in zip(halves, (ours, theirs), strict=True)]
    if is_half[0] != is_half[1] and metrics.masked_relative_l2(ours, theirs) < MAX_BFLOAT16_ERROR:
        side = "the model" if is_half[0] else "the reference"
        place = is_half.index(True)
        words = f"Looks like rounding to bfloat16 in {side}"
        yield Explanation(halves[place], (ours, theirs)[place], words)


def shifted(evidence: Evidence) -> Iterator[Explanation]:
    """Every token has the values of the token before or after it."""
    ours, theirs = evidence.ours, evidence.theirs
    words = "Looks like a shift by one position: the model is {}"
    yield Explanation(ours[:, 1:], theirs[:, :-1], words.format("late"))
    yield Explanation(ours[:, :-1], theirs[:, 1:], words.format("early"))


def capped(evidence: Evidence) -> Iterator[Explanation]:
    """One side is `cap * tanh(x / cap)` of the other."""
    for one, other, words in (
        (evidence.ours, evidence.theirs, "the reference is capped at {:.4g}"),
        (evidence.theirs, evidence.ours, "the model is capped at {:.4g}"),
    ):
        seen = np.isfinite(one) & np.isfinite(other)
        x, y = one[seen].astype(np.float64), other[seen].astype(np.float64)
        # Newton's method for 1 / cap, started from the first Taylor term of the difference.
        inverse = math.sqrt(abs(3 * np.dot(x**3, x - y) / np.dot(x**3, x**3)))
        for _ in range(20):
            z = np.tanh(inverse * x)
            slope = x * (1 - z**2) / inverse - z / inverse**2
            inverse = abs(inverse - np.dot(slope, z / inverse - y) / np.dot(slope, slope))
        cap = 1 / inverse
        yield Explanation(cap * np.tanh(x / cap), y, "Looks like a soft cap: " + words.format(cap))


def few_tokens(evidence: Evidence) -> Iterator[Explanation]:
    """Only a few tokens differ."""
    ours, theirs = evidence.ours, evidence.theirs
    if f"{evidence.path}.router" in evidence.reference:
        return  # the hint on experts is more specific
    axes = tuple(range(2, ours.ndim))
    size = np.sqrt(np.square(theirs).sum(axes).mean())
    off_BT = np.sqrt(np.square(ours - theirs).sum(axes)) > 10 * evidence.threshold * size
    if 0 < off_BT.sum() <= off_BT.size / 4:
        rows = range(len(ours)) if evidence.rows is None else evidence.rows
        first = ", ".join(str((rows[row], int(at))) for row, at in np.argwhere(off_BT)[:4])
        more = " and others" if off_BT.sum() > 4 else ""
        words = f"Only {off_BT.sum()} of {off_BT.size} tokens differ: (row, position) {first}"
        yield Explanation(ours[~off_BT], theirs[~off_BT], words + more)
