"""Ring caches of limited lookback give the same results as no cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import TINY, random_model, relative_l2

from jaxllm.config import AttentionConfig, LayerKind
from jaxllm.layers.attention.cache import NOWHERE, KVCache, RingCache, make_cache
from jaxllm.layers.context import Context

TOLERANCE = 3e-6  # relative L2, float32
REACH, B, T = 5, 3, 17
KINDS = {name: {f"attention.{name}": REACH} for name in ("window", "chunk")}
FULL = LayerKind()


@functools.cache
def layer_of(attention: str):
    pattern = (LayerKind(attention=attention),)
    return random_model(num_layers=1, scan_layers=False, pattern=pattern, **KINDS[attention])


@functools.partial(jax.jit, static_argnames="is_cached")
def run(layer, x_BTD, positions_BT, cache=None, *, is_cached=False):
    return layer(x_BTD, Context(positions_BT=positions_BT), cache if is_cached else None)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.cases(1)
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("step", examples([1, 2, 3], 3))
def test_cached_equals_uncached_at_every_split_of_ragged_rows(attention, step):
    """A prompt of ragged rows, then the rest of each row from its own position, in steps."""
    model = layer_of(attention)
    layer, config = model.layers["0"].attn, model.config
    x_BTD, counted_1T = draw(B, T, TINY.embed_dim), np.arange(T)[None]
    whole_BTD, _ = run(layer, x_BTD, counted_1T)
    for split in range(0, T + 1, 1 if step == 1 else 4):
        prompts = np.clip(split - np.array([0, 2, 5]), 0, T)
        found = np.zeros(whole_BTD.shape, np.float32)
        cache = make_cache(config, LayerKind(attention=attention), B, T)
        assert cache.length == REACH
        positions = np.where(counted_1T < prompts[:, None], counted_1T, -1)
        out, cache = run(layer, x_BTD, positions, cache, is_cached=True)
        found[positions >= 0] = out[positions >= 0]
        for start in range(0, T, step):
            positions = prompts[:, None] + start + np.arange(step)
            positions = np.where(positions < T, positions, -1)
            tokens = np.take_along_axis(x_BTD, np.maximum(positions, 0)[..., None], axis=1)
            out, cache = run(layer, tokens, positions, cache, is_cached=True)
            rows, columns = np.nonzero(positions >= 0)
            found[rows, positions[rows, columns]] = out[rows, columns]
        assert relative_l2(found, whole_BTD) < TOLERANCE, split


def test_ring_cache_stores_tokens_at_position_modulo_slots():
    cache = RingCache.empty(TINY, 2, 4)
    k, v = jnp.asarray(draw(2, 6, 2, 16)), jnp.asarray(draw(2, 6, 2, 16) + 1)
    positions = jnp.asarray([[0, 1, 2, 3, 4, 5], [3, 4, -1, -1, -1, -1]])
    cache = cache.write(k, v, positions)
    assert cache.positions_BC.tolist() == [[4, 5, 2, 3], [4, NOWHERE, NOWHERE, 3]]
    for ours, new in ((cache.k_BCKH, k), (cache.v_BCKH, v)):
        np.testing.assert_array_equal(ours[0], new[0, jnp.asarray([4, 5, 2, 3])])
        np.testing.assert_array_equal(ours[1, 0], new[1, 1])
        np.testing.assert_array_equal(ours[1, 3], new[1, 0])
        assert not np.any(ours[1, 1:3])


@pytest.mark.parametrize("count", [1, 2])
def test_rewritten_tokens_replace_old_ones(count):
    """As after a rejected token of speculative decoding."""
    model = layer_of("window")
    layer, x_BTD = model.layers["0"].attn, draw(B, T, TINY.embed_dim)
    whole_BTD, _ = run(layer, x_BTD, np.arange(T)[None])
    cache = make_cache(model.config, LayerKind(attention="window"), B, T)
    for tokens, positions in (
        (x_BTD[:, :8], np.arange(8)),
        (x_BTD[:, 8:9] + 1, np.array([8])),
        (x_BTD[:, 8 : 8 + count], np.arange(8, 8 + count)),
    ):
        out, cache = run(layer, tokens, positions[None], cache, is_cached=True)
    assert relative_l2(out, whole_BTD[:, 8 : 8 + count]) < TOLERANCE


@pytest.mark.parametrize("scan", [True, False])
def test_only_layers_with_unlimited_lookback_cache_all_tokens(scan):
    pattern = (LayerKind(attention="window"), LayerKind(attention="window"), FULL)
    model = random_model(
        num_layers=6, pattern=pattern, attention=AttentionConfig(window=REACH), scan_layers=scan
    )
    cache = model.init_cache(2, 40)
    slots = {label: one.k_BCKH.shape[-3] for label, one in cache.items()}
    assert sorted(set(slots.values())) == [REACH, 40]
    one_slot = 2 * 2 * TINY.num_kv_heads * TINY.head_dim * 4  # keys and values of two rows
    positions = 4 * 2 * REACH * 4
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert nbytes == (4 * REACH + 2 * 40) * one_slot + positions


def test_short_text_uses_a_plain_cache():
    config = layer_of("window").config
    assert isinstance(make_cache(config, LayerKind(attention="window"), 2, REACH), KVCache)
    assert isinstance(make_cache(config, LayerKind(attention="window"), 2, REACH + 1), RingCache)
    assert make_cache(config, FULL, 2, 99).length == 99


def test_non_causal_model_has_no_cache():
    with pytest.raises(ValueError, match=r"a cache with attention\.causal=False"):
        random_model(attention=AttentionConfig(causal=False)).init_cache(2, 8)


@pytest.mark.parametrize("kind", [KVCache, RingCache])
def test_numbers_in_int8_are_off_by_half_a_step_of_their_head_and_token(kind):
    """Writes more tokens than a ring has slots, so that some are overwritten."""
    rng = np.random.default_rng(0)
    size = (2, 9, TINY.num_kv_heads, TINY.head_dim)
    k_BTKH, v_BTKH = (jnp.asarray(rng.standard_normal(size), jnp.float32) for _ in range(2))
    k_BTKH = k_BTKH.at[0, 3, 1].multiply(1000).at[1, 2].set(0)
    cache = kind.empty(TINY, 2, 9 if kind is KVCache else 5, "int8")
    for t in range(9):
        own = slice(t, t + 1)
        cache, seen = cache.extend(k_BTKH[:, own], v_BTKH[:, own], jnp.full((2, 1), t))
    k_BCKH, v_BCKH, positions_BC = map(np.asarray, seen)
    for found, given in ((k_BCKH, k_BTKH), (v_BCKH, v_BTKH)):
        expected = np.asarray(given)[:, positions_BC[0]]
        step = np.abs(expected).max(-1, keepdims=True) / 127
        assert (np.abs(found - expected) <= step * 0.5001).all()
    assert found.dtype == np.float32


@pytest.mark.parametrize(("dtype", "size"), [(None, 4), ("bfloat16", 2), ("int8", 1)])
def test_memory_of_a_cache_is_what_its_numbers_take(dtype, size):
    cache = KVCache.empty(TINY, 3, 20, dtype)
    numbers = 2 * 3 * 20 * TINY.num_kv_heads * TINY.head_dim
    scales = 4 * numbers // TINY.head_dim if dtype == "int8" else 0
    assert sum(x.nbytes for x in jax.tree.leaves(cache)) == size * numbers + scales


@pytest.mark.parametrize("attention", KINDS)
def test_a_key_of_nan_is_felt_only_where_it_is_seen(attention):
    """Read with the others or one by one, it leaves those alone that do not look back so far."""
    model = layer_of(attention)
    layer, config = model.layers["0"].attn, model.config
    x_BTD = draw(1, T, TINY.embed_dim)
    x_BTD[0, 1] = np.nan
    whole_BTD, _ = run(layer, x_BTD, np.arange(T)[None])
    cache, found = make_cache(config, LayerKind(attention=attention), 1, T), []
    for t in range(T):
        out, cache = run(layer, x_BTD[:, t : t + 1], np.array([[t]]), cache, is_cached=True)
        found.append(out)
    is_nan_T = np.isnan(np.concatenate(found, axis=1)).any((0, 2))
    np.testing.assert_array_equal(is_nan_T, np.isnan(whole_BTD).any((0, 2)))
    assert is_nan_T[1]
    assert not is_nan_T[REACH + 1 :].any()
