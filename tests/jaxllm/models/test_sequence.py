"""Models over continuous inputs: ragged rows, caches at every split, and cache sizes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import random_of, relative_l2
from vector_models import (
    BOTH_WAYS,
    LAYERS,
    LENGTHS,
    LONGEST,
    PAIR,
    SEQUENCE,
    SOURCE_BSI,
    TOLERANCE,
    WINDOW,
    X_BTI,
    D,
    N,
    T,
    padded,
    run,
    segments,
)

from jaxllm.config import (
    DecoderConfig,
    ExpertsConfig,
    LayerKind,
    PositionConfig,
    from_dict,
    make_config,
    to_dict,
    with_fields,
)
from jaxllm.models import SequenceModel, SequenceToSequence, with_window

KV_HEADS = {"mha": N, "gqa": 2, "mqa": 1}
EXPERTS = ExpertsConfig(num_experts=3, top_k=1, mlp_dim=40, capacity=99, router_bias=True)


@jax.jit
def step(model, x_BTI, positions, cache):
    out = model(x_BTI, positions=positions, cache=cache)
    return out.logits, out.cache


@pytest.mark.cases(1)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooled", examples([True, False], True))
@pytest.mark.parametrize("experts", examples([None, EXPERTS], None))
def test_ragged_rows_equal_single_rows(causal, pooled, experts):
    kind = LayerKind(mlp="dense" if experts is None else "experts")
    changes = {"attention.causal": causal, "pooled": pooled, "experts": experts, "pattern": (kind,)}
    model = random_of(with_fields(SEQUENCE, changes))
    together = run(model, padded(X_BTI, LENGTHS), segment_ids=segments(LENGTHS, T))
    for row, length in enumerate(LENGTHS):
        alone = run(model, X_BTI[row : row + 1, :length])[0]
        found = together[row] if pooled else together[row, :length]
        assert relative_l2(found, alone) < TOLERANCE


def test_pooled_output_is_from_the_mean_hidden_state():
    pooled = random_of(dataclasses.replace(BOTH_WAYS, pooled=True))
    single = random_of(BOTH_WAYS)
    assert run(pooled, X_BTI).shape == (3, 2)
    assert relative_l2(run(pooled, X_BTI), run(single, X_BTI).mean(axis=1)) < TOLERANCE


@pytest.mark.cases(1, exhaustive=4)
@pytest.mark.parametrize("attention", examples(KV_HEADS, "gqa"))
@pytest.mark.parametrize("window", examples([None, WINDOW], WINDOW))
@pytest.mark.parametrize("firsts", examples([range(1, T + 1), (1, T // 2)], (1, T // 2)), ids=len)
def test_cached_equals_uncached_at_every_split(attention, window, firsts):
    """A prefix, then two tokens at once, then one at a time."""
    model = random_of(dataclasses.replace(SEQUENCE, num_kv_heads=KV_HEADS[attention]))
    model = model if window is None else with_window(model, window)
    whole = run(model, X_BTI)
    for first in firsts:
        cuts = sorted({0, first, min(first + 2, T), *range(first + 3, T + 1)})
        cache, parts = model.init_cache(3, T), []
        for a, b in itertools.pairwise([*cuts, T] if cuts[-1] < T else cuts):
            out, cache = step(model, X_BTI[:, a:b], np.arange(a, b)[None], cache)
            parts.append(out)
        assert relative_l2(np.concatenate(parts, axis=1), whole) < TOLERANCE, first


@pytest.mark.parametrize("attention", KV_HEADS)
def test_cache_has_the_specified_size(attention):
    """2 S D elements per layer; 2 S D G / H with G groups; 2 S D / H with one. H counts heads."""
    S, G = 12, KV_HEADS[attention]
    formula = {"mha": 2 * S * D, "gqa": 2 * S * D * G // N, "mqa": 2 * S * D // N}[attention]
    model = random_of(dataclasses.replace(SEQUENCE, num_kv_heads=G))
    for batch_size in (1, 3):
        leaves = jax.tree.leaves(model.init_cache(batch_size, S))
        assert sum(leaf.size for leaf in leaves) == batch_size * 2 * formula  # of two layers
        assert sum(leaf.nbytes for leaf in leaves) == batch_size * 2 * formula * 4
    slid = jax.tree.leaves(with_window(model, WINDOW).init_cache(1, S))
    # Plus the position of each slot's token.
    assert sum(leaf.size for leaf in slid) == 2 * (formula // S * WINDOW + WINDOW)


def test_window_allows_sequences_longer_than_max_len():
    slid = with_window(random_of(SEQUENCE), LONGEST)
    x_BTI = np.random.default_rng(2).standard_normal((1, 40, 3)).astype(np.float32)
    cache, parts = slid.init_cache(1, 1000), []
    for t in range(40):
        out, cache = step(slid, x_BTI[:, t : t + 1], np.array([[t]]), cache)
        parts.append(out)
    assert relative_l2(np.concatenate(parts, axis=1), run(slid, x_BTI)) < TOLERANCE


@pytest.mark.parametrize("config", [SEQUENCE, BOTH_WAYS, PAIR], ids=["one", "both ways", "two"])
def test_config_round_trips_through_plain_data(config):
    assert from_dict(to_dict(config)) == config
    stacks = ("encoder", "decoder") if config is PAIR else ()
    values = {**vars(config), **{stack: vars(getattr(config, stack)) for stack in stacks}}
    assert make_config(values) == config
    assert with_fields(config, scan_layers=False) != config
    model = random_of(config)
    assert isinstance(model, SequenceToSequence if config is PAIR else SequenceModel)


def test_too_long_sequence_is_rejected():
    long_BTI = np.zeros((1, LONGEST + 1, 3), np.float32)
    message = f"a sequence of {LONGEST + 1} tokens is longer than max_len={LONGEST}"
    for config in (SEQUENCE, with_fields(SEQUENCE, {"positions.kind": "learned"})):
        with pytest.raises(ValueError, match=message):
            random_of(config)(long_BTI)
        with pytest.raises(ValueError, match=message):
            random_of(config).init_cache(1, LONGEST + 1)
    with pytest.raises(ValueError, match=message):
        random_of(PAIR)(np.zeros((1, LONGEST + 1, 4), np.float32), X_BTI[:1])
    with pytest.raises(ValueError, match=message):
        random_of(PAIR)(SOURCE_BSI[:1], long_BTI)


def test_pooled_and_non_causal_models_have_no_cache():
    pooled = random_of(dataclasses.replace(SEQUENCE, pooled=True))
    with pytest.raises(ValueError, match="pooled=True: the mean needs the whole sequence"):
        pooled.init_cache(1, 4)
    with pytest.raises(ValueError, match="pooled=True: the model has one output per sequence"):
        pooled.generate_next_token(X_BTI)
    with pytest.raises(ValueError, match=r"a cache with attention\.causal=False"):
        random_of(BOTH_WAYS).init_cache(1, 4)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_heads": 5}, "num_heads=5 is not a multiple of num_kv_heads=2"),
        ({"input_dim": 0}, "input_dim=0 is less than 1"),
        ({"output_dim": -1}, "output_dim=-1 is less than 1"),
        ({"embed_scale": 2.0}, "embed_scale=2.0 must be 1.0: vectors are not embedded"),
        (
            {"pooled": True, "attention.cross": True},
            "pooled=True cannot be combined with attention.cross=True",
        ),
    ],
)
def test_conflicting_options_are_rejected(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        with_fields(SEQUENCE, changes)


def test_with_window_works_for_every_model():
    config = DecoderConfig(vocab_size=9, **LAYERS | {"positions": PositionConfig()})
    model, tokens = random_of(config), jnp.arange(T)[None] % 9
    before, after = (run(with_window(model, WINDOW), x) for x in (tokens, tokens.at[0, 0].add(1)))
    moved = np.asarray(before != after).any((0, 2))
    assert moved.tolist() == [t < 2 * WINDOW - 1 for t in range(T)]  # through two layers
