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


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_transposed_kernel_with_a_bias_is_not_taken_for_a_missing_bias(is_recorded):
    """After uniform attention all tokens have nearly the same input, and so the same error."""
    x_BTD = drawn(1, 1, D) + 0.02 * drawn(B, T, D)
    kernel, bias, path = drawn(D, D), drawn(D), "layers.0.attn.o_proj"
    weights = {f"{path}.kernel": kernel, f"{path}.bias": bias}
    around = {"layers.0.attn.mixed": x_BTD} if is_recorded else {}
    ours, theirs = x_BTD @ kernel + bias, x_BTD @ kernel.T + bias
    found = hint(path, ours, theirs, weights=weights, reference=around)
    assert found == "Looks like a transposed square kernel"
    assert "bias" in hint(path, ours, ours - bias, weights=weights, reference=around)


def test_a_singular_kernel_has_no_input_to_try():
    kernel, path = np.ones((D, D), np.float32), "layers.0.attn.o_proj"
    ours = drawn(B, T, D) @ kernel
    assert hint(path, ours, drawn(B, T, D, seed=1), weights={f"{path}.kernel": kernel}) is None


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
