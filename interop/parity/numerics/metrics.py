"""Error metrics between two NumPy arrays, computed in float64.

Minus infinity is the score of a masked key. Where both arrays have it, the difference is zero;
where only one does, it is infinite. `jaxllm.numerics.distance` has errors of arrays without masks.
"""

import math
from collections.abc import Iterator

import numpy as np

from jaxllm.numerics.distance import difference, norm, relative

# The first tokens show a wrong mask or scale; only the last ones show a wrong rotary frequency.
BUCKET_STARTS = (0, 4, 32, 128, 512)

MOST_ULPS = 2**16  # the most elements whose distance in ULPs is measured


def masked_relative_l2(ours: np.ndarray, reference: np.ndarray) -> float:
    """Returns `|ours - reference| / |reference|` over all unmasked elements; 0 if both are 0."""
    return relative(norm(_difference(ours, reference)), norm(_seen(reference)))


def masked_max_abs(ours: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest absolute difference of two elements; 0 where both are masked."""
    return float(np.max(np.abs(_difference(ours, reference))))


def max_over_rms(ours: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest absolute difference, relative to the RMS of the reference."""
    rms = math.sqrt(float(np.mean(np.square(_seen(reference)))))
    return relative(masked_max_abs(ours, reference), rms)


def _difference(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    apart = difference(ours, reference)
    hidden = np.isneginf(reference)
    return np.where(hidden & np.isneginf(ours), 0.0, apart) if hidden.any() else apart


def _seen(array: np.ndarray) -> np.ndarray:
    array, hidden = np.asarray(array, np.float64), np.isneginf(array)
    return array[~hidden] if hidden.any() else array


def ulps(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Returns the distance of elements in float32 ULPs: median, 99th percentile and maximum.

    -0 and +0 are the same number. NaN is infinitely far from everything. Of large arrays, a random
    sample is compared.
    """
    ours, reference = (np.ascontiguousarray(x, np.float32).reshape(-1) for x in (ours, reference))
    if ours.size > MOST_ULPS:
        places = np.random.default_rng(0).integers(ours.size, size=MOST_ULPS)
        ours, reference = ours[places], reference[places]
    apart = np.abs(_ordered(ours) - _ordered(reference)).astype(np.float64)
    apart[np.isnan(ours) | np.isnan(reference)] = math.inf
    # No interpolation: next to infinity it is undefined.
    p50, p99, most = np.quantile(apart, (0.5, 0.99, 1.0), method="higher")
    return float(p50), float(p99), float(most)


def _ordered(x: np.ndarray) -> np.ndarray:
    """Maps float32 numbers to integers in the same order, one apart for neighbors."""
    bits = x.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def kl_per_token(ours_BTV: np.ndarray, reference_BTV: np.ndarray) -> np.ndarray:
    """Returns `KL(reference || ours)` of each next-token distribution, in nats, BT."""
    kl_BT = np.empty(reference_BTV.shape[:-1])
    for at in np.ndindex(kl_BT.shape):  # token by token: all logits in float64 would be large
        kl_BT[at] = _kl(ours_BTV[at], reference_BTV[at])
    return kl_BT


def _kl(ours_V: np.ndarray, reference_V: np.ndarray) -> float:
    """Sums `p (q/p - 1 - log(q/p))`, which equals the sum of `p log(p/q)`: p and q sum to one.

    No term is negative, so nothing cancels, and divergences far below 1e-16 are accurate.
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
    """Returns where both sides have the same top-1 token, BT."""
    return ours_BTV.argmax(-1) == reference_BTV.argmax(-1)


def top1_unexplained(ours_BTV: np.ndarray, reference_BTV: np.ndarray, noise: float) -> int:
    """Counts the positions whose top-1 token differs by more than noise explains.

    Logits that are off by `noise` can swap the top two tokens if these are within `2 * noise`.
    """
    second_BT, first_BT = np.moveaxis(np.partition(reference_BTV, -2)[..., -2:], -1, 0)
    is_close_BT = first_BT - second_BT <= 2 * noise
    return int(np.sum(~top1_agrees(ours_BTV, reference_BTV) & ~is_close_BT))


def position_buckets(length: int) -> Iterator[tuple[int, int | None]]:
    """Yields the position ranges of reports that a sequence of `length` reaches, as (start, stop).

    The stop of the last range is None: it has no end.
    """
    for start, stop in zip(BUCKET_STARTS, (*BUCKET_STARTS[1:], None), strict=True):
        if start < length:
            yield start, stop
