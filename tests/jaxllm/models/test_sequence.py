"""Models over continuous inputs: ragged rows, caches at every split, and cache sizes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_of, relative_l2

from jaxllm.config import (
    AttentionConfig,
    DecoderConfig,
    Experts,
    LayerKind,
    MlpConfig,
    NormConfig,
    PositionConfig,
    SequenceConfig,
    SequenceToSequenceConfig,
    StackConfig,
    from_dict,
    make_config,
    to_dict,
    with_fields,
)
from jaxllm.models import SequenceModel, SequenceToSequence, with_scanned_layers, with_window

TOLERANCE = 3e-6  # relative L2, float32
D, N, H, LONGEST, WINDOW = 24, 4, 6, 16, 5
KV_HEADS = {"mha": N, "gqa": 2, "mqa": 1}
LAYERS = {
    **{"embed_dim": D, "num_layers": 2, "num_heads": N, "num_kv_heads": 2, "head_dim": H},
    **{"mlp_dim": 40, "max_len": LONGEST},
    "positions": PositionConfig(kind="sinusoidal"),
    "norms": NormConfig(kind="layer", placement="post", final=False),
    "attention": AttentionConfig(qkv_bias=True, out_bias=True),
    "mlp": MlpConfig(activation="relu", gated=False, bias=True),
}
SEQUENCE = SequenceConfig(input_dim=3, output_dim=2, **LAYERS)
BOTH_WAYS = with_fields(SEQUENCE, {"attention.causal": False})
EXPERTS = Experts(num_experts=3, top_k=1, mlp_dim=40, capacity=99, router_bias=True)
PAIR = SequenceToSequenceConfig(
    encoder=with_fields(StackConfig(**LAYERS), {"attention.causal": False}),
    decoder=with_fields(SEQUENCE, {"attention.cross": True}),
    source_dim=4,
)
T = 13
X_BTI = np.random.default_rng(0).standard_normal((3, T, 3)).astype(np.float32)
SOURCE_BSI = np.random.default_rng(1).standard_normal((3, 11, 4)).astype(np.float32)
LENGTHS, SOURCE_LENGTHS = (T, 7, 1), (3, 11, 6)


@jax.jit
def run(model, *inputs, **options):
    return model(*inputs, **options).logits


@jax.jit
def step(model, x_BTI, positions, cache):
    out = model(x_BTI, positions=positions, cache=cache)
    return out.logits, out.cache


def segments(lengths: tuple[int, ...], width: int) -> np.ndarray:
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)


def padded(x: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Rows cut to these lengths, with extreme values as padding."""
    return np.where(segments(lengths, x.shape[1])[..., None] == 1, x, 77).astype(np.float32)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("experts", [None, EXPERTS])
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


def test_ragged_pairs_equal_single_pairs():
    model = random_of(PAIR)
    together = run(
        model,
        padded(SOURCE_BSI, SOURCE_LENGTHS),
        padded(X_BTI, LENGTHS),
        src_segment_ids=segments(SOURCE_LENGTHS, 11),
        segment_ids=segments(LENGTHS, T),
    )
    for row, (source, target) in enumerate(zip(SOURCE_LENGTHS, LENGTHS, strict=True)):
        alone = run(model, SOURCE_BSI[row : row + 1, :source], X_BTI[row : row + 1, :target])
        assert relative_l2(together[row, :target], alone[0]) < TOLERANCE


@pytest.mark.parametrize("attention", KV_HEADS)
@pytest.mark.parametrize("window", [None, WINDOW])
def test_cached_equals_uncached_at_every_split(attention, window):
    """A prefix, then two tokens at once, then one at a time."""
    model = random_of(dataclasses.replace(SEQUENCE, num_kv_heads=KV_HEADS[attention]))
    model = model if window is None else with_window(model, window)
    whole = run(model, X_BTI)
    for first in range(1, T + 1):
        cuts = sorted({0, first, min(first + 2, T), *range(first + 3, T + 1)})
        cache, parts = model.init_cache(3, T), []
        for a, b in itertools.pairwise([*cuts, T] if cuts[-1] < T else cuts):
            out, cache = step(model, X_BTI[:, a:b], np.arange(a, b)[None], cache)
            parts.append(out)
        assert relative_l2(np.concatenate(parts, axis=1), whole) < TOLERANCE, first


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("scan", [True, False])
def test_cached_decoder_equals_uncached_decoder(window, scan):
    """The source's keys are computed once, when the cache is created."""
    model = with_scanned_layers(random_of(PAIR), scan)
    model = model if window is None else with_window(model, window)
    ids = segments(SOURCE_LENGTHS, 11)
    whole = run(model, padded(SOURCE_BSI, SOURCE_LENGTHS), X_BTI, src_segment_ids=ids)
    source, _ = model.encode(padded(SOURCE_BSI, SOURCE_LENGTHS), segment_ids=ids)
    assert source.x_BSD.shape == (3, 11, D)
    decode = jax.jit(lambda x, p, cache: model.decode(x, positions=p, cache=cache)[:2])
    for first in (1, 4, 5, 6):
        cache, parts = model.init_cache(source, T), []
        for a, b in itertools.pairwise([0, first, *range(first + 1, T + 1)]):
            out, cache = decode(X_BTI[:, a:b], np.arange(a, b)[None], cache)
            parts.append(out)
        assert relative_l2(np.concatenate(parts, axis=1), whole) < TOLERANCE
    kept = cache[next(iter(cache))].source.k_BSKH
    assert kept.shape[-3:] == (11, 2, H)


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


def test_mismatched_stacks_are_rejected():
    for changes, complaint in (
        ({"source_dim": 0}, "source_dim=0 is less than 1"),
        ({"encoder": SEQUENCE}, "encoder.attention.causal=True: it must be False"),
        ({"encoder": BOTH_WAYS}, "encoder is a SequenceConfig"),
        ({"decoder": SEQUENCE}, "decoder.attention.cross=False"),
        (
            {"encoder": dataclasses.replace(PAIR.encoder, embed_dim=32)},
            "embed_dim is 32 in the encoder and 24 in the decoder",
        ),
    ):
        with pytest.raises(ValueError, match=complaint):
            dataclasses.replace(PAIR, **changes)


def test_with_window_works_for_every_model():
    config = DecoderConfig(vocab_size=9, **LAYERS | {"positions": PositionConfig()})
    model, tokens = random_of(config), jnp.arange(T)[None] % 9
    before, after = (run(with_window(model, WINDOW), x) for x in (tokens, tokens.at[0, 0].add(1)))
    moved = np.asarray(before != after).any((0, 2))
    assert moved.tolist() == [t < 2 * WINDOW - 1 for t in range(T)]  # through two layers
