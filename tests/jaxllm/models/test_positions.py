"""Every kind of positions: cached, ragged, packed, and at their limit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import TINY, random_model, random_of, relative_l2

from jaxllm.config import (
    EncoderDecoderConfig,
    PositionConfig,
    RelativeBuckets,
    RopeScaling,
    StackConfig,
    with_fields,
)
from jaxllm.generation import generate
from jaxllm.layers.attention.distance_bias import DistanceBias
from jaxllm.layers.context import Context
from jaxllm.models import stack

TOLERANCE = 1e-5  # relative L2, float32
KINDS = {
    "rope": {"rope.layout": "interleaved"},
    "learned": {},
    "sinusoidal": {},
    "alibi": {},
    "relative": {"positions.relative": RelativeBuckets(count=8, max_distance=20)},
    "distance": {},
    "none": {},
}
LENGTH = 24
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (3, LENGTH))


@pytest.fixture(scope="module", params=examples(KINDS, "relative"))
def model(request):
    """A decoder with max_len=24, for each kind of positions."""
    fields = {"positions.kind": request.param, **KINDS[request.param]}
    return random_model(fields, max_len=LENGTH)


@jax.jit
def logits_of(model, tokens, segment_ids=None):
    return model(tokens, segment_ids=segment_ids).logits


def test_cached_equals_uncached(model):
    """Ragged rows: a few tokens at once, then one at a time, up to the last position."""
    run = jax.jit(
        lambda model, tokens, positions, cache: model(tokens, positions=positions, cache=cache)
    )
    expected, lengths = logits_of(model, TOKENS), np.array([5, 3, 1])
    at = np.arange(5)[None]
    at = np.where(at < lengths[:, None], at, -1)
    out = run(model, TOKENS[:, :5], at, model.init_cache(3, LENGTH + 8))
    for row, length in enumerate(lengths):
        assert relative_l2(out.logits[row, :length], expected[row, :length]) < TOLERANCE
    for i in range(LENGTH - 5):
        at = (lengths + i)[:, None]
        out = run(model, np.take_along_axis(TOKENS, at, 1), at, out.cache)
        assert relative_l2(out.logits, np.take_along_axis(expected, at[..., None], 1)) < TOLERANCE


def test_padded_rows_equal_single_rows(model):
    lengths = (LENGTH, 13, 1)
    is_token = np.arange(LENGTH) < np.array(lengths)[:, None]
    found = logits_of(model, np.where(is_token, TOKENS, 0), is_token.astype(np.int32))
    for row, length in enumerate(lengths):
        alone = logits_of(model, TOKENS[row : row + 1, :length])
        assert relative_l2(found[row, :length], alone[0]) < TOLERANCE


def test_distance_bias_is_a_table_per_layer():
    bias = (
        random_model(positions=PositionConfig(kind="distance"), max_len=4, scan_layers=False)
        .layers["1"]
        .attn_bias
    )
    assert isinstance(bias, DistanceBias)
    table = np.asarray(bias.embedding[...])
    assert table.shape == (7, TINY.num_heads)
    found = bias(jnp.array([[0, 3]]), jnp.array([[0, 1, 3]]))
    assert found.shape == (1, TINY.num_heads, 2, 3)
    for i, query in enumerate((0, 3)):
        for j, key in enumerate((0, 1, 3)):
            np.testing.assert_array_equal(found[0, :, i, j], table[key - query + 3])
    beyond = bias(jnp.array([[4, 0]]), jnp.array([[0, 4]]))
    assert np.isnan(beyond[0, :, 0, 0]).all()
    assert np.isnan(beyond[0, :, 1, 1]).all()
    assert not np.isnan(beyond[0, :, 0, 1]).any()


def test_sequence_beyond_max_len_is_rejected(model):
    tokens = np.concatenate([TOKENS, TOKENS], axis=1)
    if model.config.longest is None:
        assert np.isfinite(logits_of(model, tokens)).all()
        return
    with pytest.raises(ValueError, match="a sequence of 48 tokens is longer than max_len=24"):
        model(tokens)
    # Each packed document has its own positions.
    at, segments = np.tile(np.arange(LENGTH), 2)[None], np.repeat([[1, 2]], LENGTH, axis=1)
    packed = model(tokens, positions=at, segment_ids=segments).logits
    assert relative_l2(packed[:, LENGTH:], logits_of(model, TOKENS)) < TOLERANCE


@pytest.fixture
def warnings(monkeypatch, caplog):
    """The warnings of this test, none of which was given before."""
    monkeypatch.setattr(stack, "_warned", set())
    return caplog


def test_rope_beyond_training_is_warned_of_once_with_the_numbers(model, warnings):
    is_rope = model.config.positions.kind == "rope"
    tokens = np.concatenate([TOKENS, TOKENS], axis=1)
    if model.config.longest is None:
        jax.jit(lambda tokens: model(tokens).logits)(tokens[:1, :25])
        model(tokens[:1, :30])
        generate(model, [TOKENS[0].tolist()], 8)
    said = [record.getMessage() for record in warnings.records]
    assert len(said) == is_rope
    assert all("a sequence of 25 tokens is longer than max_len=24" in each for each in said)


@pytest.mark.exhaustive
def test_generation_and_positions_beyond_training_are_warned_of(warnings):
    model = random_model(max_len=24)
    generate(model, [TOKENS[0, :20].tolist()], 5)
    model(TOKENS, positions=np.arange(LENGTH)[None])
    # Documents of a row begin again, so that none is too long.
    segments, at = np.repeat([[1, 2]], LENGTH, axis=1), np.tile(np.arange(LENGTH), 2)[None]
    model(np.tile(TOKENS[:1], 2), positions=at, segment_ids=segments)
    assert not warnings.records
    generate(model, [TOKENS[0, :20].tolist()], 6)
    assert "a sequence of 25 tokens is longer than max_len=24" in warnings.text
    stack._warned.clear()
    model(TOKENS[:, :2], positions=np.array([[0, 24]]))
    assert len(warnings.records) == 2
    scaled = RopeScaling(kind="dynamic", factor=2.0, original_max_len=24)
    stretched = random_model({"rope.scaling": scaled}, max_len=24)
    stack._warned.clear()
    assert stretched.config.longest_trained == 48
    generate(stretched, [TOKENS[0, :20].tolist()], 20)
    assert len(warnings.records) == 2


def test_known_positions_beyond_learned_ones_are_rejected():
    model = random_model({"positions.kind": "learned"}, max_len=24)
    with pytest.raises(ValueError, match="a sequence of 25 tokens is longer than max_len=24"):
        model(TOKENS[:, :2], positions=np.array([[0, 24]]))


def test_generation_beyond_max_len_is_rejected(model):
    prompt = TOKENS[0, :20].tolist()
    assert len(generate(model, [prompt], 5)[0]) == 5
    if model.config.longest is not None:
        with pytest.raises(ValueError, match="20 tokens and max_new_tokens=6 exceed max_len=24"):
            generate(model, [prompt], 6)


def shared(**changes: object) -> EncoderDecoderConfig:
    names = [field.name for field in dataclasses.fields(StackConfig)]
    stack = StackConfig(**{name: getattr(TINY, name) for name in names})
    both = {"max_len": LENGTH, "norms.kind": "layer"}
    encoder = {**both, "attention.causal": False, "positions.kind": "none"}
    decoder = {**both, "attention.cross": True, "positions.kind": "learned"}
    return EncoderDecoderConfig(
        encoder=with_fields(stack, encoder),
        decoder=with_fields(TINY, decoder),
        **{"share_positions": True, "start_token": 1, **changes},
    )


@pytest.mark.exhaustive
def test_stacks_can_share_a_position_table():
    config = shared()
    model = random_of(config)
    assert model.encoder.embed_position is None
    table = model.decoder.embed_position.embedding[...]
    source, _ = model.encode(TOKENS)
    x = model.decoder.embed(TOKENS) + table[:LENGTH]
    assert relative_l2(source.x_BSD, model.encoder.transform(x, Context())[0]) < TOLERANCE
    with pytest.raises(ValueError, match="a sequence of 48 tokens is longer than max_len=24"):
        model.encode(np.concatenate([TOKENS, TOKENS], axis=1))
    with pytest.raises(ValueError, match="a prompt of 25 tokens is longer than max_len=24"):
        generate(model, [[3] * 25], 2)
    # A prompt of 20 tokens is padded to 32, but there are only 24 positions.
    prompt = TOKENS[0, :20].tolist()
    tokens = generate(model, [prompt], 3)[0]
    logits = model(np.array([prompt]), np.array([[1, *tokens[:2]]])).logits
    assert np.argmax(logits[0], -1).tolist() == tokens


def test_share_positions_rejects_encoder_positions():
    config = shared()
    encoder = with_fields(config.encoder, {"positions.kind": "learned"})
    with pytest.raises(
        ValueError, match=r"share_positions=True with positions\.kind='learned' in the encoder"
    ):
        dataclasses.replace(config, encoder=encoder)
