"""Options of a stack and its head equal their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_model, relative_l2

from jaxllm.config import (
    AttentionConfig,
    HeadConfig,
    NormConfig,
    PositionConfig,
    RelativeBuckets,
    with_fields,
)
from jaxllm.layers.attention.sinusoids import sinusoids
from jaxllm.layers.context import Context
from jaxllm.layers.norm import Norm
from jaxllm.params import named_parameters

TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 9))
X_BTD = np.random.default_rng(1).standard_normal((2, 9, TINY.embed_dim)).astype(np.float32)
POSITIONS = np.arange(9)[None]


@jax.jit
def hidden_of(model, tokens):
    return model.hidden(tokens, Context())[0]


def test_sinusoids_are_added_to_the_first_layer_input():
    model = random_model(positions=PositionConfig(kind="sinusoidal"))
    assert not any("position" in name for name in named_parameters(model))
    expected = X_BTD + np.asarray(sinusoids(POSITIONS, TINY.embed_dim))
    assert relative_l2(model.embed_positions(X_BTD, POSITIONS), expected) <= 1e-6


def test_position_offset_skips_rows_of_the_table():
    model = random_model(positions=PositionConfig(kind="learned", offset=2))
    table = np.asarray(model.embed_position.embedding[...])
    assert table.shape == (TINY.max_len + 2, TINY.embed_dim)
    found = model.embed_positions(X_BTD, POSITIONS)
    assert relative_l2(found, X_BTD + table[2:11]) <= 1e-6
    last = model.embed_positions(X_BTD, np.full((1, 9), TINY.max_len - 1))
    assert relative_l2(last, X_BTD + table[-1]) <= 1e-6
    assert np.isnan(model.embed_positions(X_BTD, np.full((1, 9), TINY.max_len))).all()


def test_embedding_norm_follows_positions():
    model = random_model(
        positions=PositionConfig(kind="learned"), norms=NormConfig(embed=True, kind="layer")
    )
    sum_BTD = X_BTD + np.asarray(model.embed_position.embedding[...])[:9]
    mean, variance = (f(sum_BTD, axis=-1, keepdims=True) for f in (np.mean, np.var))
    scale, bias = (np.asarray(x[...]) for x in (model.embed_norm.scale, model.embed_norm.bias))
    expected = (sum_BTD - mean) / np.sqrt(variance + TINY.norms.eps) * scale + bias
    assert relative_l2(model.embed_positions(X_BTD, POSITIONS), expected) <= 1e-6


def test_final_norm_can_have_its_own_eps():
    own = random_model(norms=NormConfig(final_eps=0.5))
    last = random_model(norms=NormConfig(final=False))
    norm = Norm("D", (TINY.embed_dim,), with_fields(TINY, {"norms.eps": 0.5}))
    norm.scale.set_value(own.final_norm.scale.get_value())
    # Parameters are drawn in order of their names, so the model without final norm has others.
    for name, variable in named_parameters(last).items():
        variable.set_value(named_parameters(own)[name].get_value())
    assert relative_l2(hidden_of(own, TOKENS), norm(hidden_of(last, TOKENS))) <= 1e-6


def test_non_causal_stack_sees_later_tokens():
    changed = TOKENS.copy()
    changed[:, 6] = (changed[:, 6] + 1) % TINY.vocab_size
    for causal in (True, False):
        model = random_model(attention=AttentionConfig(causal=causal))
        moved = np.abs(hidden_of(model, changed) - hidden_of(model, TOKENS)).max(-1)
        assert (moved[:, :6] > 1e-4).all() != causal
        assert (moved[:, 6:] > 1e-4).all()


def test_relative_positions_share_one_table_between_layers():
    model = random_model(
        positions=PositionConfig(
            kind="relative", relative=RelativeBuckets(count=8, max_distance=20)
        )
    )
    assert model.position_bias.embedding[...].shape == (8, TINY.num_heads)
    before = hidden_of(model, TOKENS)
    model.position_bias.embedding.set_value(model.position_bias.embedding.get_value()[::-1])
    assert relative_l2(hidden_of(model, TOKENS), before) > 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_scaled_then_biased_then_capped(tied):
    plain = random_model(head=HeadConfig(tied=tied))
    model = random_model(head=HeadConfig(tied=tied, scale=0.3, bias=True, softcap=2.0))
    for name, variable in named_parameters(plain).items():
        named_parameters(model)[name].set_value(variable.get_value())
    bias = np.asarray(model.head_bias[...])
    assert bias.shape == (TINY.vocab_size,)
    expected = 2.0 * np.tanh((0.3 * np.asarray(plain.unembed(X_BTD)) + bias) / 2.0)
    assert relative_l2(model.unembed(X_BTD), expected) <= 1e-6


def test_embedding_scale_does_not_apply_to_a_tied_head():
    scaled, plain = (
        random_model(head=HeadConfig(tied=True), embed_scale=scale) for scale in (5.0, 1.0)
    )
    np.testing.assert_array_equal(
        scaled.embed_tokens(TOKENS), 5 * jnp.asarray(plain.embed_tokens(TOKENS))
    )
    np.testing.assert_array_equal(scaled.unembed(X_BTD), plain.unembed(X_BTD))


def bucketed(**buckets: int) -> PositionConfig:
    return PositionConfig(kind="relative", relative=RelativeBuckets(**buckets))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions.offset": -1}, "positions.offset=-1 is negative"),
        (
            {"positions.offset": 2},
            "positions.offset=2 is for positions.kind='learned' or 'sinusoidal', not 'rope'",
        ),
        ({"positions.kind": "relative"}, "positions.relative=None with positions.kind='relative'"),
        ({"positions.relative": RelativeBuckets()}, "with positions.kind='rope'"),
        ({"norms.final_eps": 0.0}, "norms.final_eps=0.0 is not positive"),
        ({"head.scale": 0.0}, "head.scale=0.0 is not positive"),
        (
            {"attention.cross": True, "attention.qk_norm": "head"},
            "attention.cross=True with attention.qk_norm='head'",
        ),
        (
            {"positions": bucketed(count=5), "attention.causal": False},
            "relative.count=5 with attention.causal=False: it must be at least 4 and even",
        ),
        (
            {"positions": bucketed(count=32, max_distance=16)},
            "max_distance=16 must be greater than 16",
        ),
    ],
)
def test_conflicting_options_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        with_fields(TINY, changes)
