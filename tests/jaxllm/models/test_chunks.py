"""Cached decoding equals one pass with chunked layers and layers without RoPE (temperature)."""

import jax
import numpy as np
import pytest
from tiers import examples
from tiny import TINY, random_model, relative_l2

from jaxllm.config import AttentionConfig, ExpertsConfig, LayerKind, TemperatureConfig
from jaxllm.models import with_scanned_layers

TOLERANCE = 3e-6  # relative L2 of logits, float32
CHUNK, LENGTH = 8, 37  # four chunks and part of a fifth
LOCAL = LayerKind(attention="chunk")
GLOBAL = LayerKind(rope="none", mlp="experts")


@pytest.fixture(scope="module")
def model():
    return random_model(
        num_layers=4,
        pattern=(LOCAL, GLOBAL),
        attention=AttentionConfig(
            chunk=CHUNK,
            qk_norm="after_rope",
            temperature=TemperatureConfig(scale=0.5, floor_scale=5.0),
        ),
        experts=ExpertsConfig(num_experts=5, top_k=2, mlp_dim=24, scores="sigmoid", scale="input"),
    )


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, TINY.vocab_size, (3, LENGTH))


@jax.jit
def logits_of(model, tokens, positions=None):
    return model(tokens, positions=positions).logits


@jax.jit
def step(model, tokens, positions, cache):
    out = model(tokens, positions=positions, cache=cache)
    return out.logits, out.cache


@pytest.mark.parametrize("scan", examples([True, False], True))
def test_token_by_token_equals_one_pass_at_every_chunk_boundary(model, tokens, scan):
    model = with_scanned_layers(model, scan)
    whole = logits_of(model, tokens)
    cache = model.init_cache(len(tokens), LENGTH + 2)
    for t in range(LENGTH):
        logits, cache = step(model, tokens[:, t : t + 1], np.full((1, 1), t), cache)
        assert relative_l2(logits[:, 0], whole[:, t]) < TOLERANCE, t


@pytest.mark.exhaustive
def test_prompts_ending_near_chunk_boundaries_continue_correctly(model):
    """One row per prompt length, so that rows are in different chunks too."""
    boundaries = np.arange(CHUNK, LENGTH, CHUNK)
    lengths = np.sort(np.concatenate([boundaries - 1, boundaries, boundaries + 1]))
    rows, longest = np.arange(lengths.size), lengths.max()
    tokens = np.random.default_rng(1).integers(0, TINY.vocab_size, (rows.size, LENGTH))
    whole = np.asarray(logits_of(model, tokens))
    counted = np.arange(longest)[None]
    positions = np.where(counted < lengths[:, None], counted, -1)
    cache = model.init_cache(rows.size, LENGTH)
    logits, cache = step(model, tokens[:, :longest], positions, cache)
    for row, length in enumerate(lengths):
        assert relative_l2(logits[row, :length], whole[row, :length]) < TOLERANCE
    for i in range(LENGTH - lengths.min()):
        at = np.minimum(lengths + i, LENGTH - 1)
        logits, cache = step(model, tokens[rows, at][:, None], at[:, None], cache)
        assert relative_l2(logits[:, 0], whole[rows, at]) < TOLERANCE, at


def test_layers_without_rope_use_positions_only_for_temperature(model, tokens):
    """RoPE does not depend on where a text begins; the temperature does."""
    first, shifted = np.arange(CHUNK)[None], np.arange(CHUNK, 2 * CHUNK)[None]
    cold = random_model(
        num_layers=2,
        pattern=(LOCAL, LayerKind(rope="none")),
        attention=AttentionConfig(chunk=CHUNK),
    )
    short = tokens[:, :CHUNK]
    at = [[logits_of(m, short, where) for where in (first, shifted)] for m in (model, cold)]
    assert relative_l2(*at[0]) > 1e-3
    assert relative_l2(*at[1]) < 1e-5


def test_only_layers_without_rope_see_other_chunks(tokens):
    local = random_model(num_layers=3, pattern=(LOCAL,), attention=AttentionConfig(chunk=CHUNK))
    both = random_model(
        num_layers=3,
        pattern=(LOCAL, LayerKind(rope="none")),
        attention=AttentionConfig(chunk=CHUNK),
    )
    changed = tokens.copy()
    changed[:, 2] = (changed[:, 2] + 1) % TINY.vocab_size
    for model, is_seen in ((local, False), (both, True)):
        moved = np.asarray(logits_of(model, tokens) != logits_of(model, changed))
        reached = [t >= 2 and (is_seen or t < CHUNK) for t in range(LENGTH)]
        assert moved.any((0, 2)).tolist() == reached
