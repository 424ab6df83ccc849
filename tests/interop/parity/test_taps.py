"""Taps are aligned by name, by layout and in the order of execution."""

import numpy as np
import pytest
from tiny import TINY

from jaxllm.interop.parity.taps import TAPS, Alignment

LAYER = ("attn_norm", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn", "mlp_norm", "mlp")


def alignment(**sizes):
    return Alignment(TAPS["llama"](TINY), TINY, sizes.get("shape_BT", (2, 5)))


def test_taps_are_in_execution_order():
    layers = [
        path
        for i in range(3)
        for path in (*(f"layers.{i}.{step}" for step in LAYER), f"layers.{i}")
    ]
    assert alignment().paths == ("embed", *layers, "final_norm")


def test_heads_are_split_off_and_rotated_pairs_reordered():
    aligned = alignment()
    outputs = {
        name: np.random.default_rng(i).random((2, 5, width))
        for i, name in enumerate(aligned.modules)
        for width in [64 if "q_proj" in name else 32]
    }
    arrays = aligned.align(outputs)
    q = outputs["model.layers.1.self_attn.q_proj"].astype(np.float32)
    np.testing.assert_array_equal(arrays["layers.1.attn.q_proj"], q.reshape(2, 5, 4, 16))
    assert tuple(arrays) == aligned.paths


def test_other_sizes_are_refused_by_name():
    aligned = alignment()
    outputs = dict.fromkeys(aligned.modules, np.zeros((2, 5, 7)))
    with pytest.raises(
        ValueError, match=r"embed_tokens .* \(2, 5, 7\), the model has \(2, 5, 32\)"
    ):
        aligned.align(outputs)
