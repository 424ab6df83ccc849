"""Explanations of wrong attention: rotations, masks, heads, scores and softmax."""

from collections.abc import Iterator

import numpy as np

from .arrays import capped, named_ratio, rounded
from .evidence import Evidence, Explain, Explanation
from .rope import ROTATIONS


def other_mask(evidence: Evidence) -> Iterator[Explanation]:
    """The masks differ: one side attends to keys that the other masks with scores of -inf."""
    if evidence.name != "scores":
        return
    ours, theirs = evidence.ours, evidence.theirs
    ours_seen, theirs_seen = np.isfinite(ours), np.isfinite(theirs)
    if not (ours_seen != theirs_seen).any():
        return
    both = ours_seen & theirs_seen
    words = "Looks like a different mask"
    names = [describe_mask(seen[0, :, 0]) for seen in (theirs_seen, ours_seen)]
    if all(names) and names[0] != names[1]:
        words += f": {names[0]} in the reference, {names[1]} in the model"
    yield Explanation(ours[both], theirs[both], words)


def describe_mask(seen_TS: np.ndarray) -> str | None:
    """Names a mask, such as "a window of 64"; None if it is of no known kind."""
    T, S = seen_TS.shape
    at, keys = np.arange(T)[:, None], np.arange(S)[None]
    ahead = sorted({int(np.flatnonzero(row)[-1]) - t for t, row in enumerate(seen_TS) if row.any()})
    is_causal = len(ahead) == 1
    upto = keys <= at + ahead[0] if is_causal and ahead else np.ones((T, S), bool)
    suffixes = {0: "", 1: " plus the next key", -1: " without the query's own key"}
    after = suffixes.get(ahead[0] if ahead else 0, "")
    until = ("causal" if is_causal else "all keys") + after
    if np.array_equal(seen_TS, upto):
        return until
    first = seen_TS.argmax(1)
    window = int((np.arange(T) - first).max()) + 1
    if np.array_equal(seen_TS, upto & (at - keys < window)):
        return f"a window of {window}" + after
    if len(starts := np.unique(first)) > 1:
        chunk = int(np.diff(starts).max())
        early = int(starts[1] % chunk)
        if np.array_equal(seen_TS, upto & ((at - early) // chunk == (keys - early) // chunk)):
            return f"chunks of {chunk}" + (f", the first of {early}" if early else "") + after
    return None


def tiled_heads(evidence: Evidence) -> Iterator[Explanation]:
    """Query head n uses key head n % K on one side and key head n // G on the other."""
    q, k = evidence.sibling("q"), evidence.sibling("k")
    if evidence.name != "scores" or q is None or k is None or not 1 < k.shape[2] < q.shape[2]:
        return
    at = slice(-1, None)
    N, K = q.shape[2], k.shape[2]
    repeated, tiled = np.arange(N) // (N // K), np.arange(N) % K
    turned = np.arange(N).reshape(-1, K).T.reshape(-1)  # query heads sorted by key head
    seen = np.isfinite(evidence.ours[:, at]) & np.isfinite(evidence.theirs[:, at])
    products = {
        "repeated": _products(q[:, at], k[:, :, repeated]),
        "tiled": _products(q[:, at], k[:, :, tiled]),
        "turned": _products(q[:, at][:, :, turned], k[:, :, repeated]),
    }
    for ours, theirs in (("tiled", "repeated"), ("turned", "repeated"), ("repeated", "tiled")):
        made = np.stack([products[ours], products[theirs]])
        both = np.stack([evidence.ours[:, at], evidence.theirs[:, at]])
        made, both = np.where(seen, made, 0), np.where(seen, both, 0)
        scale = np.vdot(made, both) / np.vdot(made, made)
        side = "the model" if theirs == "repeated" else "the reference"
        words = f"Looks like k/v heads tiled instead of repeated in {side}"
        yield Explanation(scale * made, both, words)


def _products(q_BTNH: np.ndarray, k_BSNH: np.ndarray) -> np.ndarray:
    return np.einsum("BTNH,BSNH->BTNS", q_BTNH, k_BSNH)


def scaled_scores(evidence: Evidence) -> Iterator[Explanation]:
    """The reference's scores are the model's times a constant, plus a relative bias, or capped."""
    if evidence.name != "scores":
        return
    seen = np.isfinite(evidence.ours) & np.isfinite(evidence.theirs)
    if not np.array_equal(seen, np.isfinite(evidence.ours)):
        return
    ours, theirs = (np.where(seen, x, 0) for x in (evidence.ours, evidence.theirs))
    ratio = float(np.vdot(ours, theirs) / np.vdot(ours, ours))
    words = (
        f"Looks like a different scale of scores: the reference's is {ratio:.5g} times the model's"
    )
    yield Explanation(ratio * ours, theirs, words + named_ratio(ratio, evidence.sizes))
    T, S = seen.shape[1], seen.shape[3]
    apart_TS = np.arange(T)[:, None] - np.arange(S)[None] + S - 1
    by_distance = np.zeros(ours.shape[1:], np.float32)  # TNS
    for head in range(ours.shape[2]):
        counts = np.bincount(apart_TS.reshape(-1), seen[:, :, head].sum(0).reshape(-1))
        sums = np.bincount(apart_TS.reshape(-1), (theirs - ours)[:, :, head].sum(0).reshape(-1))
        by_distance[:, head] = (sums / np.maximum(counts, 1))[apart_TS]
    words = "Looks like a different bias by the distance between query and key"
    yield Explanation(np.where(seen, ours + by_distance, 0), theirs, words)
    yield from capped(evidence)


def softmax_in_half(evidence: Evidence) -> Iterator[Explanation]:
    """One side computes its softmax in bfloat16."""
    if evidence.name == "probs":
        for one, other, words in rounded(evidence):
            side = "the reference" if "the reference" in words else "the model"
            yield Explanation(one, other, f"Looks like softmax in bfloat16 in {side}")


def with_sink(evidence: Evidence) -> Iterator[Explanation]:
    """One side has an attention sink: its probabilities sum to less than one."""
    ours, theirs = evidence.ours, evidence.theirs
    if evidence.name == "probs":
        share = theirs.sum(-1, keepdims=True) / ours.sum(-1, keepdims=True)
        if np.abs(share - 1).max() > 1e-4:
            yield Explanation(ours * share, theirs, "Looks like an attention sink on one side only")


ATTENTION: tuple[Explain, ...] = (
    *(other_mask, tiled_heads, scaled_scores, softmax_in_half, with_sink, *ROTATIONS),
)
