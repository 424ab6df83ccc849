"""Hints for wrong norms."""

import numpy as np
from wrong_activations import B, D, T, drawn, hint


def normalized(x, eps):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


def test_wrong_norms_are_recognized():
    x, scale, other = drawn(B, T, D), 1 + 0.3 * drawn(D), 1 + 0.3 * drawn(D, seed=1)
    weights = {"layers.0.mlp_norm.scale": scale, "layers.1.mlp_norm.scale": other}
    h = normalized(x, 1e-3)
    plus_one = hint("layers.0.mlp_norm", h * (scale + 1), h * scale, weights=weights)
    assert "norm +1: the reference scales by one less" in plus_one
    centered = x - x.mean(-1, keepdims=True)

    def found(theirs):
        return hint("layers.0.mlp_norm", h * scale, theirs, weights=weights)

    assert "norm +1: the reference scales by one more" in found(h * (scale + 1))
    assert "norm +1: the reference scales by one less" in found(h * (scale - 1))
    assert "the reference uses layers.1.mlp_norm.scale" in found(h * other)
    assert "a LayerNorm" in found(centered / centered.std(-1, keepdims=True) * scale)
    assert "a different eps: the reference's is about 10 times the model's" in found(
        normalized(x, 1e-2) * scale
    )
