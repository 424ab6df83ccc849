"""Taps are derived from the rules of the weights and align names and layouts."""

import numpy as np
import pytest
from tiny import random_model

from jaxllm.config import RopeConfig
from jaxllm.interop.families import Layout
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.parity.alignment.activations import derive_taps
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.layouts import Alignment

HEADS = ("q", "k", "v", "scores", "probs", "mixed")
LAYER = (
    *("", ".attn_norm", ".attn", ".mlp_norm", ".mlp"),
    *(f".attn.{name}" for name in (*HEADS, "q_proj", "k_proj", "v_proj", "o_proj")),
    *(f".mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
)
WIDTHS = {
    **{"query": (4, 5, 16), "key": (2, 5, 16), "value": (2, 5, 16), "mixed": (5, 4, 16)},
    **{"scores": (4, 5, 5), "probs": (4, 5, 5)},
}


def alignment(**changes):
    model = random_model(scan_layers=False, **changes)
    return Alignment(
        derive_taps(LLAMA.table(model.config, Layout()), model, Inputs(np.zeros((2, 5), int)))
    )


def outputs_of(aligned):
    """Random numbers with the names and shapes of the reference's outputs."""
    rng = np.random.default_rng(0)
    outputs = {}
    for tap in aligned.taps:
        for module in tap.modules:
            what = module.partition("@")[2]
            shape = (2, *WIDTHS[what]) if what else tap.rule.stored.shape(tap.sizes)
            outputs[module] = rng.random(shape, np.float32)
    return outputs


def test_every_activation_of_every_layer_has_a_tap():
    aligned = alignment()
    layers = {f"layers.{i}{name}" for i in range(3) for name in LAYER}
    arrays = aligned.align(outputs_of(aligned))
    assert set(arrays) == {"embed", "final_norm", *layers}  # logits are what the model returns
    assert "model.layers.2.self_attn" in aligned.modules


def test_taps_are_in_the_execution_order_of_the_reference():
    aligned = alignment()
    outputs = outputs_of(aligned)
    backwards = dict(reversed(outputs.items()))
    assert list(aligned.align(backwards)) == list(aligned.align(outputs))[::-1]


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_heads_are_split_and_rotated_pairs_reordered(layout):
    aligned = alignment(rope=RopeConfig(layout=layout))
    outputs = outputs_of(aligned)
    arrays = aligned.align(outputs)
    q = outputs["model.layers.1.self_attn.q_proj"].astype(np.float32).reshape(2, 5, 4, 16)
    key = outputs["model.layers.1.self_attn@key"].astype(np.float32).swapaxes(1, 2)
    if layout == "interleaved":
        q, key = (
            x.reshape(*x.shape[:-1], 2, 8).swapaxes(-1, -2).reshape(x.shape) for x in (q, key)
        )
    np.testing.assert_array_equal(arrays["layers.1.attn.q_proj"], q)
    np.testing.assert_array_equal(arrays["layers.1.attn.k"], key)


def test_softmax_inputs_that_are_not_scores_are_left_out():
    aligned = alignment()
    outputs = outputs_of(aligned)
    outputs["model.layers.1.self_attn@scores"] = np.zeros((2, 4, 5, 6), np.float32)
    arrays = aligned.align(outputs)
    assert "layers.1.attn.scores" not in arrays
    assert {"layers.1.attn.probs", "layers.0.attn.scores"} <= set(arrays)


def test_outputs_of_another_shape_are_rejected_by_name():
    aligned = alignment()
    outputs = outputs_of(aligned)
    outputs["model.embed_tokens"] = np.zeros((2, 5, 7))
    with pytest.raises(
        ValueError, match=r"embed_tokens has shape \(2, 5, 7\) in the reference, \(2, 5, 32\) in"
    ):
        aligned.align(outputs)
