"""Layers of `LLM`: attention beside PyTorch's, frequencies beside transformers', and widths."""

import dataclasses
import math

import pytest
import torch
from float64 import assert_close, normal
from torch.nn import functional
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxllm.interop.reference.llm.arguments import ModelArgs
from jaxllm.interop.reference.llm.layers import (
    Attention,
    FeedForward,
    apply_scaling,
    create_chunked_attention_mask,
    precompute_freqs_cis,
)
from jaxllm.interop.reference.positions import frequencies

ARGS = ModelArgs(
    **{"dim": 48, "n_layers": 1, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 9},
    **{"attn_temperature_tuning": True, "floor_scale": 4.0, "attn_scale": 0.1},
    **{"batch_size": 2, "max_seq_len": 16},
)


@pytest.mark.parametrize("use_qk_norm", [False, True])
def test_attention_is_that_of_pytorch(draw, use_qk_norm):
    """Without positions; the temperature multiplies queries, and norms have no scale."""
    args = dataclasses.replace(ARGS, floor_scale=2.0)
    attention = draw(Attention(args, use_qk_norm, use_rope=False))
    x, mask = normal(2, 9, 48), create_chunked_attention_mask(9, 4)
    q, k, v = (
        projection(x).unflatten(-1, (-1, 8)).transpose(1, 2)
        for projection in (attention.wq, attention.wk, attention.wv)
    )
    if use_qk_norm:
        q, k = (functional.rms_norm(y, (8,), eps=args.norm_eps) for y in (q, k))
    heat = [1 + 0.1 * math.log(1 + (t + 1) // 2) for t in range(9)]
    q = q * torch.tensor(heat, dtype=torch.float64)[:, None]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    freqs_cis = precompute_freqs_cis(8, 9, 10000.0, False, 8.0, 4.0, torch.float64)
    assert_close(attention(x, 0, freqs_cis, mask), attention.wo(out.transpose(1, 2).flatten(2)))


def test_a_token_sees_its_chunk_up_to_itself():
    mask = create_chunked_attention_mask(8, 3)
    expected = [[i // 3 == j // 3 and j <= i for j in range(8)] for i in range(8)]
    assert mask.tolist() == expected


@pytest.mark.parametrize("high", [4.0, 1.0])
def test_scaled_frequencies_are_those_of_hugging_face(high):
    parameters = {
        **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 16.0},
        **{"low_freq_factor": 1.0, "high_freq_factor": high},
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=1, head_dim=128, rope_parameters=parameters
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    found = apply_scaling(frequencies(128, 500000.0, torch.float64), 16.0, high)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected)


def test_queries_grow_with_the_logarithm_of_their_position():
    args = dataclasses.replace(ARGS, floor_scale=4.0, attn_scale=0.1)
    attention = Attention(args, use_qk_norm=False, use_rope=False)
    q = torch.ones(1, 6, 1, 8, dtype=torch.float64)
    found = attention.tempered(q, start_pos=2)[0, :, 0, 0].tolist()
    expected = [1 + 0.1 * math.log(1 + (p + 1) // 4) for p in range(2, 8)]
    assert found == pytest.approx(expected, abs=1e-15)


def test_a_feed_forward_network_is_swiglu(draw):
    ffn, x = draw(FeedForward(16, 48, 8)), normal(2, 5, 16)
    gate, value = x @ ffn.w_gate.weight.T, x @ ffn.w_value.weight.T
    assert_close(ffn(x), (gate * gate.sigmoid() * value) @ ffn.w_out.weight.T)


@pytest.mark.parametrize(
    ("dim", "multiplier", "multiple_of", "width"),
    [(5120, 1.2, 2048, 16384), (4096, 1.3, 1024, 14336), (4096, None, 2048, 12288)],
)
def test_widths_are_those_of_the_released_models(dim, multiplier, multiple_of, width):
    with torch.device("meta"):
        ffn = FeedForward(dim, 4 * dim, multiple_of, multiplier)
    assert ffn.w_out.in_features == width
