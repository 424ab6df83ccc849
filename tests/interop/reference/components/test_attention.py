"""Attention of the components: PyTorch's own, and with a cache what it is without one."""

import pytest
import torch
from cache_splits import splits
from float64 import assert_close, normal
from torch.nn import functional

from jaxllm.interop.reference.components.attention import (
    GroupQueryAttention,
    MultiHeadAttention,
    MultiQueryAttention,
    get_attention,
)

WINDOW = 6
KINDS = ("mha", "mqa", "gqa")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_that_of_pytorch(draw, kind, causal):
    attention = draw(get_attention(kind, 24, 4, apply_causal_mask=causal))
    x = normal(2, 9, 24)
    q, k, v = (
        projection(x).unflatten(-1, (-1, 6)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    assert k.shape[1] == {"mha": 4, "mqa": 1, "gqa": 2}[kind]
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert_close(attention(x), attention.out_proj(out.transpose(1, 2).flatten(2)))
    assert_close(attention(x, x, x), attention(x))


def test_groups_reach_from_one_head_to_all(draw):
    x = normal(2, 9, 24)
    for groups, other in ((1, MultiQueryAttention(24, 4)), (4, MultiHeadAttention(24, 4))):
        assert_close(draw(GroupQueryAttention(24, 4, groups))(x), draw(other)(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expanding", [True, False])
@pytest.mark.parametrize("first", range(1, 12))
def test_cached_attention_equals_uncached(draw, kind, expanding, first):
    """At every boundary of the window."""
    plain = draw(get_attention(kind, 24, 4, None, True, False, WINDOW))
    cached = draw(get_attention(kind, 24, 4, None, True, True, WINDOW))
    x = normal(2, 13, 24)
    parts = [cached(x[:, a:b], expanding_context=expanding) for a, b in splits(13, first)]
    assert_close(torch.cat(parts, dim=1), plain(x, expanding_context=expanding))
    assert cached.cache[0].shape[1] == (13 if expanding else WINDOW)


def test_a_window_hides_what_is_before_it(draw):
    attention = draw(MultiHeadAttention(24, 4, True, False, WINDOW))
    x, other = normal(1, 13, 24), normal(1, 13, 24)
    other[:, 2] += 1
    moved = (attention(x, None, None, False) != attention(other, None, None, False)).any(-1)[0]
    assert moved.tolist() == [2 <= i < 2 + WINDOW for i in range(13)]


def test_the_encoders_keys_are_projected_once_and_anew_for_another_source(draw):
    plain, cached = (draw(MultiHeadAttention(24, 4, use_kv_cache=use)) for use in (False, True))
    calls = []
    cached.k_proj.register_forward_hook(lambda *_: calls.append(1))
    x, source, another = normal(2, 5, 24), normal(2, 7, 24, seed=1), normal(2, 8, 24, seed=2)
    for t in range(5):
        assert_close(cached(x[:, t : t + 1], source), plain(x, source)[:, t : t + 1])
    assert len(calls) == 1
    assert_close(cached(x, another), plain(x, another))
    assert len(calls) == 2


def test_a_cache_keeps_gradients(draw):
    plain, cached = (draw(MultiHeadAttention(24, 4, True, use)) for use in (False, True))
    x = normal(2, 6, 24)
    plain(x).square().sum().backward()
    parts = torch.cat([cached(x[:, :4]), cached(x[:, 4:])], dim=1)
    parts.square().sum().backward()
    assert_close(cached.k_proj.weight.grad, plain.k_proj.weight.grad)


@pytest.mark.parametrize(
    ("kind", "sizes", "complaint"),
    [
        ("mla", (24, 4), "attention_type='mla' is not one of mha, mqa, gqa"),
        ("mha", (24, 5), "embed_dim=24 is not a multiple of num_heads=5"),
        ("gqa", (24, 4, 3), "num_heads=4 is not a multiple of num_groups=3"),
    ],
)
def test_heads_that_do_not_fit_are_errors(kind, sizes, complaint):
    with pytest.raises(ValueError, match=complaint):
        get_attention(kind, *sizes)


def test_a_window_needs_a_length(draw):
    with pytest.raises(ValueError, match="max_seq_len=None"):
        draw(MultiHeadAttention(24, 4, True))(normal(2, 4, 24), expanding_context=False)
