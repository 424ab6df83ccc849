"""Hints for wrong masks, scores and probabilities."""

import numpy as np
from wrong_activations import B, H, K, N, T, drawn, half, hint

from jaxllm.interop.parity.diagnosis.attention import describe_mask


def test_known_masks_are_named():
    at, keys = np.arange(T)[:, None], np.arange(T)[None]
    causal = keys <= at
    assert describe_mask(causal) == "causal"
    assert describe_mask(keys < at) == "causal without the query's own key"
    assert describe_mask(np.ones((T, T), bool)) == "all keys"
    assert describe_mask(causal & (at - keys < 5)) == "a window of 5"
    assert describe_mask(causal & (at // 6 == keys // 6)) == "chunks of 6"
    assert (
        describe_mask(causal & ((at + 1) // 6 == (keys + 1) // 6)) == "chunks of 6, the first of 5"
    )
    assert describe_mask(np.random.default_rng(0).random((T, T)) < 0.5) is None


def scores_of(q, k, seen, scale=1.0):
    k = np.repeat(k, N // K, axis=2) if k.shape[2] == K else k
    return np.where(seen, scale * np.einsum("BTNH,BSNH->BTNS", q, k), np.float32(-np.inf))


def test_wrong_scores_are_recognized():
    q, k = drawn(B, T, N, H), drawn(B, T, K, H)
    at, keys = np.arange(T)[:, None, None], np.arange(T)
    seen = keys <= at
    ours, path = scores_of(q, k, seen), "layers.0.attn.scores"
    given = {"layers.0.attn.q": q, "layers.0.attn.k": k}

    def found(theirs):
        return hint(path, ours, theirs.astype(np.float32), reference=given)

    window = scores_of(q, k, seen & (at - keys < 7))
    assert "mask: a window of 7 in the reference, causal in the model" in found(window)
    assert "(1 / sqrt(head_dim))" in found(ours / np.sqrt(H))
    assert "bias by the distance" in found(ours - 0.1 * np.abs(at - keys))
    cap = np.where(seen, 3 * np.tanh(ours / 3), -np.inf)
    assert "soft cap: the reference is capped at 3" in found(cap)
    tiled = scores_of(q, np.tile(k, (1, 1, N // K, 1)), seen)
    assert "k/v heads tiled instead of repeated in the reference" in found(tiled)
    assert "tiled instead of repeated in the model" in hint(path, tiled, ours, reference=given)


def test_wrong_probabilities_are_recognized():
    q, k = drawn(B, T, N, H), drawn(B, T, N, H, seed=1)
    scores = scores_of(q, k, np.arange(T) <= np.arange(T)[:, None, None])
    exps = np.exp(scores - scores.max(-1, keepdims=True))
    probs, path = exps / exps.sum(-1, keepdims=True), "layers.0.attn.probs"
    given = {"layers.0.attn.scores": scores}
    assert "softmax in bfloat16 in the reference" in hint(path, probs, half(probs), reference=given)
    assert "softmax in bfloat16 in the model" in hint(path, half(probs), probs, reference=given)
    sunk = exps / (exps.sum(-1, keepdims=True) + 0.5)
    assert "attention sink" in hint(path, probs, sunk, reference=given)
