"""Attention equals PyTorch's; the cache grows token by token."""

import pytest
import torch

from jaxllm.interop.reference.attention import (
    Attend,
    create_causal_mask,
    extend_cache,
    repeat_kv,
    scaled_dot_product_attention,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_attention_equals_pytorch():
    q, k, v = draw(2, 5, 4, 8), draw(2, 7, 2, 8, seed=1), draw(2, 7, 2, 8, seed=2)
    mask = create_causal_mask(5, 7)
    found = Attend(2)(q, k, v, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask, enable_gqa=True
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_causal_mask_places_queries_at_the_last_positions():
    assert create_causal_mask(2, 4).tolist() == [[True, True, True, False], [True] * 4]


def test_bias_is_added_to_the_scores():
    q, k, v = (draw(1, 3, 2, 4, seed=i) for i in range(3))
    bias = torch.zeros(2, 3, 3)
    bias[..., 1] = 1e4  # every query attends to the second key
    found = scaled_dot_product_attention(q, k, v, bias_NTS=bias)
    torch.testing.assert_close(found, v[:, 1:2].expand_as(found))


def test_query_with_all_keys_masked_gets_the_mean_value():
    q, k, v = (draw(1, 3, 2, 4, seed=i) for i in range(3))
    found = scaled_dot_product_attention(q, k, v, torch.zeros(3, 3, dtype=torch.bool))
    torch.testing.assert_close(found, v.mean(1, keepdim=True).expand_as(found))


def test_repeat_kv_repeats_each_head_consecutively():
    assert (
        repeat_kv(torch.arange(2.0).reshape(1, 1, 2, 1), 3).flatten().tolist() == [0] * 3 + [1] * 3
    )


def test_cache_keeps_past_tokens_and_passes_gradients_to_new_ones():
    cache = torch.zeros(2, 4, 1, 3)
    first, second = draw(2, 3, 1, 3), draw(2, 1, 1, 3, seed=1).requires_grad_()
    assert torch.equal(extend_cache(cache, 0, first), first)
    whole = extend_cache(cache, 3, second)
    assert torch.equal(whole, torch.cat([first, second], 1))
    assert torch.equal(cache, whole.detach())
    whole.sum().backward()
    assert torch.equal(second.grad, torch.ones_like(second))
    with pytest.raises(ValueError, match="the cache holds 2 sequences of 4 tokens"):
        extend_cache(cache, 4, first)
