"""How far two arrays are apart. Pure functions of NumPy arrays, computed in float64.

Minus infinity is the score of a key that a query does not see: of two arrays it is to be in the
same places, and then counts for nothing.
"""

import math
from collections.abc import Iterator

import numpy as np

from jaxllm.deviation import difference, norm, relative

# The first tokens show a wrong mask or scale; only the last ones show a wrong rotary frequency.
BUCKET_STARTS = (0, 4, 32, 128, 512)


def relative_l2(ours: np.ndarray, reference: np.ndarray) -> float:
    """`|ours - reference| / |reference|` over all elements. Equal zeros are 0 apart, not NaN."""
    return relative(norm(_difference(ours, reference)), norm(_seen(reference)))


def max_abs(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two elements."""
    return float(np.max(np.abs(_difference(ours, reference))))


def max_over_rms(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two elements, relative to the reference's root mean square."""
    rms = math.sqrt(float(np.mean(np.square(_seen(reference)))))
    return relative(max_abs(ours, reference), rms)


def _difference(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    apart = difference(ours, reference)
    hidden = np.isneginf(reference)
    return np.where(hidden & np.isneginf(ours), 0.0, apart) if hidden.any() else apart


def _seen(array: np.ndarray) -> np.ndarray:
    array, hidden = np.asarray(array, np.float64), np.isneginf(array)
    return array[~hidden] if hidden.any() else array


def ulps(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """How many float32 numbers apart two elements lie: the median, p99 and maximum of all.

    Both zeros are one number. What is not a number is infinitely far from everything.
    """
    a, b = (_ordered(np.ascontiguousarray(x, np.float32)) for x in (ours, reference))
    apart = np.abs(a - b).astype(np.float64)
    apart[np.isnan(ours) | np.isnan(reference)] = math.inf
    # Without interpolation, which is undefined next to infinity.
    p50, p99, most = np.quantile(apart, (0.5, 0.99, 1.0), method="higher")
    return float(p50), float(p99), float(most)


def _ordered(x: np.ndarray) -> np.ndarray:
    """The numbers' places in the order of all float32 numbers."""
    bits = x.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def kl_per_token(ours_BTV: np.ndarray, reference_BTV: np.ndarray) -> np.ndarray:
    """`KL(reference || ours)` of the next-token distributions, in nats, BT."""
    kl_BT = np.empty(reference_BTV.shape[:-1])
    for at in np.ndindex(kl_BT.shape):  # token by token: a vocabulary in float64 is large
        kl_BT[at] = _kl(ours_BTV[at], reference_BTV[at])
    return kl_BT


def _kl(ours_V: np.ndarray, reference_V: np.ndarray) -> float:
    """Sums `p (q/p - 1 - log(q/p))`, which equals `p log(p/q)` as p and q both sum to one.

    No term is negative, so that nothing cancels and divergences far below 1e-16 are exact.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        log_p, log_q = _log_softmax(reference_V), _log_softmax(ours_V)
        p, log_ratio = np.exp(log_p), log_q - log_p
        terms = np.where(p == 0, np.exp(log_q), p * (np.expm1(log_ratio) - log_ratio))
    return float(terms.sum())


def _log_softmax(logits_V: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits_V, np.float64) - np.max(logits_V)
    return shifted - np.log(np.exp(shifted).sum())


def top1_agrees(ours_BTV: np.ndarray, reference_BTV: np.ndarray) -> np.ndarray:
    """Where both deem the same token the likeliest, BT."""
    return ours_BTV.argmax(-1) == reference_BTV.argmax(-1)


def top1_unexplained(ours_BTV: np.ndarray, reference_BTV: np.ndarray, noise: float) -> int:
    """The number of tokens whose likeliest successor differs though noise could not have done it.

    Logits that are off by `noise` can swap the two likeliest if these are within twice that.
    """
    second_BT, first_BT = np.moveaxis(np.partition(reference_BTV, -2)[..., -2:], -1, 0)
    is_close_BT = first_BT - second_BT <= 2 * noise
    return int(np.sum(~top1_agrees(ours_BTV, reference_BTV) & ~is_close_BT))


def position_buckets(length: int) -> Iterator[tuple[int, int | None]]:
    """The ranges of positions to report on that a sequence reaches; None is without end."""
    for start, stop in zip(BUCKET_STARTS, (*BUCKET_STARTS[1:], None), strict=True):
        if start < length:
            yield start, stop
