"""nima's layers beside PyTorch's, and each of their switches against its definition."""

import itertools
import math

import pytest
import torch
from float64 import assert_close, normal
from torch import nn

from jaxllm.interop.reference.nima.layers import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    GatedFeedForward,
    LayerConfig,
    MultiHeadAttention,
    alibi_slopes,
    rotate,
)

SIZES = {"d_model": 24, "n_heads": 4, "d_ff": 40, "max_seq_len": 16}
X, MEMORY = normal(2, 11, 24), normal(2, 7, 24, seed=1)
CAUSAL = torch.ones(11, 11, dtype=torch.bool).tril()


def config(**switches: object) -> LayerConfig:
    return LayerConfig(**SIZES, **{"position": "learned", **switches})


def as_torch(layer: EncoderLayer | DecoderLayer, kind: type) -> nn.Module:
    """PyTorch's layer with the same weights."""
    is_pre_norm = layer.is_pre_norm
    options = {"layer_norm_eps": 1e-6, "batch_first": True, "norm_first": is_pre_norm}
    theirs = kind(24, 4, 40, 0.0, **options).double().eval()
    state = {}
    for ours, name in (("self_attention", "self_attn"), ("cross_attention", "multihead_attn")):
        if (attention := getattr(layer, ours, None)) is None:
            continue
        projections = (attention.w_q, attention.w_k, attention.w_v)
        state[f"{name}.in_proj_weight"] = torch.cat([p.weight for p in projections])
        state[f"{name}.in_proj_bias"] = torch.cat([p.bias for p in projections])
        state |= {f"{name}.out_proj.{k}": v for k, v in attention.w_o.state_dict().items()}
    for name in ("linear1", "linear2"):
        weights = getattr(layer.feed_forward, name).state_dict()
        state |= {f"{name}.{k}": v for k, v in weights.items()}
    for name in ("norm1", "norm2", "norm3"):
        if hasattr(layer, name):
            state |= {f"{name}.{k}": v for k, v in getattr(layer, name).state_dict().items()}
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_layers_are_those_of_pytorch(draw, norm):
    encoder, decoder = draw(EncoderLayer(config(norm=norm))), draw(DecoderLayer(config(norm=norm)))
    theirs = as_torch(encoder, nn.TransformerEncoderLayer)
    assert_close(encoder(X, CAUSAL), theirs(X, ~CAUSAL))
    theirs = as_torch(decoder, nn.TransformerDecoderLayer)
    expected = theirs(X, MEMORY, tgt_mask=~CAUSAL)
    assert_close(decoder(X, CAUSAL, MEMORY, None), expected)


@pytest.mark.parametrize("position", ["rope", "alibi", "relative"])
def test_positions_in_attention_depend_on_distance_alone(draw, position):
    attention = draw(MultiHeadAttention(config(), position))
    mask = CAUSAL.clone()
    mask[:, :3] = False
    shifted = attention(X[:, 3:], X[:, 3:], CAUSAL[:8, :8])
    assert_close(attention(X, X, mask)[:, 3:], shifted)


def test_rope_turns_neighboring_elements_by_their_position():
    x = torch.randn(1, 5, 1, 6, dtype=torch.float64)
    turned, _ = rotate(x, x)
    for t, j in itertools.product(range(5), range(3)):
        angle = t * 10000 ** (-2 * j / 6)
        a, b = x[0, t, 0, 2 * j : 2 * j + 2].tolist()
        expected = (
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        )
        assert turned[0, t, 0, 2 * j : 2 * j + 2].tolist() == pytest.approx(expected, abs=1e-14)


def test_alibi_slopes_are_those_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    expected = [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert alibi_slopes(12, torch.float64).tolist() == pytest.approx(expected, abs=1e-15)


def test_alibi_subtracts_the_distance_on_both_sides():
    bias = MultiHeadAttention(config(), "alibi").bias(3, torch.float64)
    assert bias.dtype == torch.float64
    assert bias[0].tolist() == [[-0.25 * abs(i - j) for j in range(3)] for i in range(3)]


def test_relative_positions_add_a_number_for_each_head_and_distance(draw):
    attention = draw(MultiHeadAttention(config(), "relative"))
    bias, table = attention.bias(4, torch.float64), attention.relative_bias.weight
    assert table.shape == (31, 4)
    for n, i, j in itertools.product(range(4), range(4), range(4)):
        assert bias[n, i, j] == table[15 + j - i, n]


def test_gates_are_a_sigmoid_and_a_silu(draw):
    for kind, act in (("glu", torch.sigmoid), ("swiglu", nn.functional.silu)):
        layer = draw(GatedFeedForward(config(feed_forward=kind)))
        gate = act(X @ layer.gate.weight.T + layer.gate.bias)
        value = X @ layer.linear1.weight.T + layer.linear1.bias
        expected = (gate * value) @ layer.linear2.weight.T + layer.linear2.bias
        assert_close(layer(X), expected)
    layer = draw(FeedForward(config()))
    hidden = (X @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    expected = hidden @ layer.linear2.weight.T + layer.linear2.bias
    assert_close(layer(X), expected)


@pytest.mark.parametrize(
    ("switches", "complaint"),
    [
        ({"feed_forward": "moe"}, "feed_forward='moe' is not one of ffn, glu, swiglu"),
        ({"position": "none"}, "position='none' is not one of learned, sinusoidal"),
        ({"norm": "both"}, "norm='both' is not one of post, pre"),
        ({"n_heads": 5}, "d_model=24 is not a multiple of n_heads=5"),
        ({"n_heads": 8, "position": "rope"}, "d_model=24 / n_heads=8 is odd"),
    ],
)
def test_switches_that_do_not_fit_are_errors(switches, complaint):
    with pytest.raises(ValueError, match=complaint):
        LayerConfig(**SIZES | {"position": "learned"} | switches)
