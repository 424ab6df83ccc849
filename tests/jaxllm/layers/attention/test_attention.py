"""Attention equals PyTorch's at awkward lengths, in segments and through the cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from attention_cases import CASES, check
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, random_model, relative_l2
from torch.nn.functional import scaled_dot_product_attention

from jaxllm.config import AttentionConfig
from jaxllm.layers.attention.attention import attention, self_attention
from jaxllm.layers.attention.cache import KVCache
from jaxllm.layers.attention.kernels.call import repeat_kv
from jaxllm.layers.attention.mask import MaskSpec
from jaxllm.layers.context import Context

TOLERANCE = 2e-6  # relative L2, float32
# T, N, K. The last has the maximum number of blocks, whose size is not a power of 2.
SHAPES = [(1, 4, 2), (2, 4, 4), (17, 6, 3), (129, 6, 2), (300, 8, 1), (2100, 2, 1)]


def causal_attention(q_BTNH, k_BTKH, v_BTKH, segment_ids=None):
    positions_BT = jnp.arange(q_BTNH.shape[1])[None]
    return self_attention(q_BTNH, k_BTKH, v_BTKH, positions_BT, segment_ids, mask_spec=MaskSpec())


jitted = jax.jit(causal_attention)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def qkv(T: int, S: int, N: int, K: int, H: int = 8, B: int = 2) -> tuple[np.ndarray, ...]:
    return draw(B, T, N, H, seed=1), draw(B, S, K, H, seed=2), draw(B, S, K, H, seed=3)


def torch_attention(q_BTNH, k_BSKH, v_BSKH, **options) -> torch.Tensor:
    """PyTorch's attention, BTNH, of arrays or tensors."""
    q, k, v = (torch.as_tensor(x).transpose(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    return scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2)


@pytest.mark.cases(2)
@pytest.mark.parametrize(("T", "N", "K"), SHAPES)
def test_causal_attention_matches_torch(T, N, K):
    q, k, v = qkv(T, T, N, K)
    assert relative_l2(jitted(q, k, v), torch_attention(q, k, v, is_causal=True)) < (TOLERANCE)


@pytest.mark.parametrize(("T", "S"), [(1, 33), (5, 129), (40, 7)])
def test_any_mask_with_any_number_of_keys_matches_torch(T, S):
    q, k, v = qkv(T, S, 6, 2)
    mask_BTS = np.random.default_rng(0).random((2, T, S)) < 0.5
    mask_BTS[:, :, 0] = True
    expected = torch_attention(q, k, v, attn_mask=torch.tensor(mask_BTS)[:, None])
    assert relative_l2(attention(q, k, v, jnp.asarray(mask_BTS)), expected) < TOLERANCE
    for_all = attention(q, k, v, jnp.asarray(mask_BTS[:1]))
    expected = torch_attention(q, k, v, attn_mask=torch.tensor(mask_BTS[:1])[:, None])
    assert relative_l2(for_all, expected) < TOLERANCE


def test_gradients_match_torch():
    arrays = qkv(137, 137, 6, 2)
    weight = draw(2, 137, 6, 8, seed=4)
    gradient = jax.jit(jax.grad(lambda qkv: jnp.vdot(causal_attention(*qkv), weight)))
    ours = gradient(tuple(map(jnp.asarray, arrays)))
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    torch.sum(torch_attention(*tensors, is_causal=True) * torch.tensor(weight)).backward()
    for found, tensor in zip(ours, tensors, strict=True):
        assert relative_l2(found, tensor.grad) < TOLERANCE


@pytest.mark.cases(4)
@pytest.mark.parametrize("name", CASES)
def test_blocks_match_the_definition(name):
    """The same cases as the kernels; those with sinks by the function that blocks call."""

    def in_blocks(q, k, v, call):
        attend = functools.partial(
            attention, scale=call.scale, softcap=call.softcap, sinks_N=call.sinks_N
        )
        tokens = call.positions_BS, call.segment_ids_BS
        return self_attention(q, k, v, *tokens, mask_spec=call.mask_spec, attend=attend)

    check(CASES[name], in_blocks)


def test_each_key_value_head_serves_consecutive_query_heads():
    """A query head with the wrong key/value head would average other values."""
    q, k, v = qkv(9, 9, 6, 3)
    out = jitted(q, k, v)
    for n in range(6):
        alone = jitted(q[:, :, n : n + 1], k[:, :, n // 2][:, :, None], v[:, :, n // 2][:, :, None])
        assert relative_l2(out[:, :, n : n + 1], alone) < TOLERANCE


def test_repeated_key_value_heads_equal_grouped_ones():
    q, k, v = qkv(5, 5, N=6, K=2)
    repeated = repeat_kv(k, 3), repeat_kv(v, 3)
    np.testing.assert_array_equal(repeated[0], torch.as_tensor(k).repeat_interleave(3, dim=2))
    everything = jnp.ones((1, 5, 5), bool)
    ours = attention(q, k, v, everything)
    assert relative_l2(attention(q, *repeated, everything), ours) <= TOLERANCE


def test_fully_masked_query_gets_the_mean_value():
    q, k, v = qkv(3, 5, 4, 2)
    out = attention(q, k, v, jnp.zeros((1, 3, 5), bool))
    expected = np.broadcast_to(v.mean(1)[:, None].repeat(2, axis=2), out.shape)
    assert relative_l2(out, expected) < TOLERANCE


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 6))
@settings(max_examples=25, deadline=None)
def test_segments_equal_separate_sequences(lengths, padding):
    T = 45 + 6
    ids = [i for i, length in enumerate(lengths, start=1) for _ in range(length)]
    segment_ids = np.zeros((1, T), np.int32)
    segment_ids[0, padding : padding + len(ids)] = ids
    q, k, v = qkv(T, T, 4, 2, B=1)
    out = jitted(q, k, v, segment_ids)
    start = padding
    for length in lengths:
        part = slice(start, start + length)
        alone = torch_attention(q[:, part], k[:, part], v[:, part], is_causal=True)
        assert relative_l2(out[:, part], alone) < TOLERANCE
        start += length


def test_segments_may_cross_block_boundaries():
    T = 300
    starts = [0, 90, 128, 129, 200, 260]
    segment_ids = np.searchsorted(starts, np.arange(T), side="right")[None].repeat(2, 0)
    q, k, v = qkv(T, T, 4, 2)
    mask_BTS = (segment_ids[:, :, None] == segment_ids[:, None]) & np.tri(T, dtype=bool)
    expected = torch_attention(q, k, v, attn_mask=torch.tensor(mask_BTS)[:, None])
    assert relative_l2(jitted(q, k, v, segment_ids), expected) < TOLERANCE


def test_later_tokens_do_not_affect_earlier_ones():
    q, k, v = qkv(20, 20, 4, 2)
    is_future = (np.arange(20) >= 12)[:, None, None]
    before = jitted(q, k, v)
    after = jitted(q, np.where(is_future, 7, k), np.where(is_future, -3, v))
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] != after[:, 12:]).all()


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("magnitude", [1.0, 100.0])
def test_low_precision_is_finite_and_close(name, magnitude):
    """Scores of 10^5 would overflow float16, and a mask of -inf would give rows of NaN."""
    q, k, v = (jnp.asarray(x, name) for x in qkv(33, 33, 4, 2))
    q, k = q * magnitude, k * magnitude
    segment_ids = jnp.asarray(np.repeat([0, 1, 2], 11)[None].repeat(2, 0))
    out = jitted(q, k, v, segment_ids)
    assert out.dtype == q.dtype
    assert np.isfinite(np.asarray(out, np.float32)).all()
    exact = jitted(*(x.astype(jnp.float32) for x in (q, k, v)), segment_ids)
    assert relative_l2(out, exact) < 1e-2
    gradient = jax.jit(jax.grad(lambda q: jitted(q, k, v, segment_ids).astype(jnp.float32).sum()))
    assert np.isfinite(np.asarray(gradient(q), np.float32)).all()


# The layer with its projections, RoPE and cache.

B, T, C = 3, 12, 12


@pytest.fixture(scope="module")
def layer():
    return (
        random_model(
            scan_layers=False, num_layers=1, attention=AttentionConfig(qkv_bias=True, out_bias=True)
        )
        .layers["0"]
        .attn
    )


@functools.partial(jax.jit, static_argnames="cached")
def run(layer, x_BTD, positions_BT, cache=None, *, cached=False):
    return layer(x_BTD, Context(positions_BT=positions_BT), cache if cached else None)


def test_cached_equals_uncached_at_every_split_of_ragged_rows(layer):
    """A right-padded prompt of ragged rows, then the rest of each row from its own position."""
    x_BTD = draw(B, T, TINY.embed_dim)
    everywhere_BT = np.broadcast_to(np.arange(T), (B, T))
    full_BTD, _ = run(layer, x_BTD, everywhere_BT)
    for split in range(T + 1):
        prompts = np.clip(split - np.array([0, 2, 5]), 0, T)  # tokens of each row's prompt
        is_prompt = everywhere_BT < prompts[:, None]
        padded = np.where(is_prompt[..., None], x_BTD, 99)
        cache = KVCache.empty(TINY, B, C)
        first, cache = run(layer, padded, everywhere_BT, cache, cached=True)
        # The rest, shifted to the left; tokens past the end of a row have no slot and are unused.
        positions_BT = prompts[:, None] + np.arange(T)
        shifted = np.stack(
            [np.roll(row, -n, axis=0) for row, n in zip(x_BTD, prompts, strict=True)]
        )
        second, _ = run(layer, shifted, positions_BT, cache, cached=True)
        for row, n in enumerate(prompts):
            together = np.concatenate([first[row, :n], second[row, : T - n]])
            assert relative_l2(together, full_BTD[row]) < TOLERANCE, (split, row)


def test_cached_token_by_token_equals_uncached(layer):
    x_BTD = draw(B, T, TINY.embed_dim)
    full_BTD, _ = run(layer, x_BTD, np.broadcast_to(np.arange(T), (B, T)))
    cache, outputs = KVCache.empty(TINY, B, C + 5), []
    for t in range(T):
        out, cache = run(layer, x_BTD[:, t : t + 1], np.full((B, 1), t), cache, cached=True)
        outputs.append(out)
    assert relative_l2(np.concatenate(outputs, axis=1), full_BTD) < TOLERANCE


def test_rope_depends_only_on_relative_positions(layer):
    """Shifting all positions by a constant changes nothing: RoPE depends only on distances."""
    x_BTD = draw(B, T, TINY.embed_dim)
    near, _ = run(layer, x_BTD, np.broadcast_to(np.arange(T), (B, T)))
    far, _ = run(layer, x_BTD, np.broadcast_to(np.arange(T) + 1000, (B, T)))
    assert relative_l2(far, near) < 1e-4
    stretched, _ = run(layer, x_BTD, np.broadcast_to(np.arange(T) * 2, (B, T)))
    assert relative_l2(stretched, near) > 1e-2


def test_cache_stores_each_token_at_its_position():
    cache = KVCache.empty(TINY, 2, 5)
    k, v = draw(2, 2, 2, 16, seed=1), draw(2, 2, 2, 16, seed=2)
    positions_BT = jnp.array([[0, 3], [4, 5]])  # 5 is past the end
    written = cache.write(jnp.asarray(k), jnp.asarray(v), positions_BT)
    for ours, new in zip(written, (k, v), strict=True):
        expected = np.zeros((2, 5, 2, 16), np.float32)
        expected[0, 0], expected[0, 3], expected[1, 4] = new[0, 0], new[0, 1], new[1, 0]
        np.testing.assert_array_equal(ours, expected)
