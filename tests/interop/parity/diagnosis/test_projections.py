"""Hints for wrong projections, heads and activation functions."""

import numpy as np
import pytest
from wrong_activations import B, D, F, H, N, T, drawn, hint

HEADS_BTNH = drawn(B, T, N, H)


@pytest.mark.parametrize("stack", ["", "decoder."])
@pytest.mark.parametrize(
    ("head", "side"), [("lm_head", "the reference"), ("embed.attend", "the model")]
)
def test_a_head_tied_on_one_side_is_recognized(stack, head, side):
    x_BTD, table_VD = drawn(B, T, D), drawn(F, D)
    tied, untied = x_BTD @ table_VD.T, x_BTD @ drawn(D, F)
    ours, theirs = (untied, tied) if head == "lm_head" else (tied, untied)
    around = {f"{stack}final_norm": x_BTD}, {f"{stack}embed.embedding": table_VD}
    found = hint(f"{stack}{head}", ours, theirs, reference=around[0], weights=around[1])
    assert found == f"Looks like a tied head in {side} only"


def test_a_wrong_kernel_is_recognized():
    x, kernel, other = drawn(B, T, D), drawn(D, D), drawn(D, D, seed=1)
    path = "layers.0.attn.o_proj"
    weights = {f"{path}.kernel": kernel, "layers.1.attn.o_proj.kernel": other}

    def found(theirs):
        return hint(path, x @ kernel, theirs, weights=weights, reference={"layers.0.attn.mixed": x})

    assert "transposed square kernel" in found(x @ kernel.T)
    assert "the reference uses layers.1.attn.o_proj.kernel" in found(x @ other)
    assert found(drawn(B, T, D, seed=5)) is None


def test_swapped_and_reordered_heads_are_recognized():
    gate, up = drawn(B, T, F), drawn(B, T, F, seed=1)
    found = {"layers.0.mlp.gate_proj": gate, "layers.0.mlp.up_proj": up}
    words = hint("layers.0.mlp.gate_proj", gate, up, model=found)
    assert "gate_proj and up_proj swapped" in words
    order = [2, 0, 3, 1]
    words = hint("layers.0.attn.q_proj", HEADS_BTNH, HEADS_BTNH[:, :, order])
    assert "heads in a different order: the reference's are the model's [2, 0, 3, 1]" in words
    interleaved = HEADS_BTNH.reshape(B, T, N, 2, -1).swapaxes(-1, -2).reshape(HEADS_BTNH.shape)
    words = hint("layers.0.attn.q_proj", HEADS_BTNH, interleaved)
    assert "half/interleaved RoPE: heads are in the other layout" in words


def silu(x):
    return x / (1 + np.exp(-x))


def test_a_wrong_activation_is_recognized():
    gate, up, kernel = drawn(B, T, F), drawn(B, T, F, seed=1), drawn(F, D)
    around = {
        "reference": {"layers.0.mlp.gate_proj": gate, "layers.0.mlp.up_proj": up},
        "weights": {"layers.0.mlp.down_proj.kernel": kernel},
    }
    ours, swapped = silu(gate) * up @ kernel, silu(up) * gate @ kernel
    squared = np.maximum(gate, 0) ** 2 * up @ kernel
    assert "a different activation: the reference uses relu squared" in hint(
        "layers.0.mlp.down_proj", ours, squared, **around
    )
    assert "gate and up swapped" in hint("layers.0.mlp.down_proj", swapped, ours, **around)
