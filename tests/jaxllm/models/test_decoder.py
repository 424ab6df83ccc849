"""A decoder gives the same results packed, padded, cached, stacked and in tree mode."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import TINY, random_model, relative_l2

from jaxllm.config import AttentionConfig, DecoderConfig, HeadConfig, NumericsConfig, with_fields
from jaxllm.layers.context import Context
from jaxllm.models import build, build_abstract, with_scanned_layers
from jaxllm.params import count_parameters, named_parameters

TOLERANCE = 3e-6  # relative L2 of logits, float32

LLAMA_70B = DecoderConfig(
    vocab_size=128256,
    embed_dim=8192,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=28672,
    numerics=NumericsConfig(param_dtype="bfloat16", dtype="bfloat16"),
)


@pytest.fixture(scope="module")
def model():
    return random_model()


@jax.jit
def logits_of(model, tokens_BT, segment_ids=None, positions=None):
    return model(tokens_BT, segment_ids=segment_ids, positions=positions).logits


@jax.jit
def step(model, tokens_BT, positions, cache):
    out = model(tokens_BT, positions=positions, cache=cache)
    return out.logits, out.cache


def draw_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TINY.vocab_size, shape)


def test_packed_documents_equal_single_documents(model):
    """Positions restart in each document, although RoPE does not require it."""
    lengths = [11, 1, 17, 6]
    documents = [draw_tokens(1, n, seed=n) for n in lengths]
    padding = 5
    packed = np.concatenate([*documents, draw_tokens(1, padding)], axis=1)
    ids = np.repeat([1, 2, 3, 4, 0], [*lengths, padding])[None]
    positions = np.concatenate([np.arange(n) for n in (*lengths, padding)])[None]
    logits = logits_of(model, packed, ids, positions)
    start = 0
    for document, length in zip(documents, lengths, strict=True):
        alone = logits_of(model, document)
        assert relative_l2(logits[:, start : start + length], alone) < TOLERANCE
        start += length


def test_padding_does_not_leak(model):
    """Changing padding, on either side, changes no bit of the tokens' logits."""
    segment_ids = np.array([[0] * 3 + [1] * 9, [1] * 8 + [0] * 4])
    tokens = draw_tokens(2, 12)
    rewritten = np.where(segment_ids == 0, draw_tokens(2, 12, seed=1), tokens)
    is_padding = segment_ids == 0
    assert (rewritten != tokens).any()
    before, after = (logits_of(model, t, segment_ids) for t in (tokens, rewritten))
    np.testing.assert_array_equal(before[~is_padding], after[~is_padding])
    assert (before[is_padding] != after[is_padding]).any()


def test_later_tokens_do_not_affect_earlier_ones(model):
    tokens = draw_tokens(2, 12)
    changed = tokens.copy()
    changed[:, 7] = (changed[:, 7] + 1) % TINY.vocab_size
    before, after = logits_of(model, tokens), logits_of(model, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


def test_rows_are_independent(model):
    tokens = draw_tokens(3, 10)
    together = logits_of(model, tokens)
    for row in range(3):
        assert relative_l2(logits_of(model, tokens[row : row + 1]), together[row : row + 1]) < (
            TOLERANCE
        )


def test_positions_default_to_counting_from_zero(model):
    tokens = draw_tokens(2, 10)
    counted = np.broadcast_to(np.arange(10), (2, 10))
    np.testing.assert_array_equal(logits_of(model, tokens), logits_of(model, tokens, None, counted))
    assert relative_l2(logits_of(model, tokens, None, counted * 2), logits_of(model, tokens)) > 1e-3


@pytest.mark.parametrize("scan", [True, False])
def test_cached_decoding_equals_the_full_forward_pass(model, scan):
    """A prompt of ragged rows, then one token at a time, with a cache longer than the text."""
    model = with_scanned_layers(model, scan)
    B, T, prompts = 3, 16, np.array([9, 4, 1])
    tokens = draw_tokens(B, T)
    full = logits_of(model, tokens)
    cache = model.init_cache(B, T + 3)
    is_prompt = np.arange(T) < prompts[:, None]
    longest = prompts.max()
    padded = np.where(is_prompt, tokens, 7)[:, :longest]
    counted = np.broadcast_to(np.arange(longest), (B, longest))
    prefilled, cache = step(model, padded, counted, cache)
    for row, n in enumerate(prompts):
        assert relative_l2(prefilled[row, :n], full[row, :n]) < TOLERANCE
    for ahead in range(T - prompts.max()):
        positions = (prompts + ahead)[:, None]
        next_tokens = np.take_along_axis(tokens, positions, axis=1)
        logits, cache = step(model, next_tokens, positions, cache)
        expected = np.take_along_axis(np.asarray(full), positions[..., None], axis=1)
        assert relative_l2(logits, expected) < TOLERANCE, ahead


def test_segments_with_a_cache_are_rejected(model):
    with pytest.raises(ValueError, match="segment_ids"):
        model(
            jnp.ones((1, 2), int), segment_ids=jnp.ones((1, 2), int), cache=model.init_cache(1, 4)
        )


def test_tied_head_is_the_embedding():
    tied = random_model(head=HeadConfig(tied=True))
    assert "lm_head.kernel" not in named_parameters(tied)
    tokens = draw_tokens(2, 9)
    x_BTD, _, _ = tied.hidden(tokens, Context())
    table = np.asarray(named_parameters(tied)["embed.embedding"].get_value(), np.float64)
    assert relative_l2(logits_of(tied, tokens), np.asarray(x_BTD) @ table.T) < TOLERANCE


def test_untied_head_has_its_own_weights(model):
    tokens = draw_tokens(2, 9)
    x_BTD, _, _ = model.hidden(tokens, Context())
    kernel = np.asarray(named_parameters(model)["lm_head.kernel"].get_value(), np.float64)
    assert relative_l2(logits_of(model, tokens), np.asarray(x_BTD) @ kernel) < TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_float32_and_not_rounded(tied):
    """bfloat16 logits would have 8 bits: steps of 0.06 at 10 nats."""
    model = random_model(numerics=NumericsConfig(dtype="bfloat16"), head=HeadConfig(tied=tied))
    out = jax.jit(lambda model, tokens: model(tokens))(model, draw_tokens(2, 9))
    assert out.logits.dtype == jnp.float32
    assert (out.logits != out.logits.astype(jnp.bfloat16)).mean() > 0.9
    assert out.aux_loss == 0
    exact = logits_of(random_model(head=HeadConfig(tied=tied)), draw_tokens(2, 9))
    assert relative_l2(out.logits, exact) < 5e-2


@pytest.mark.parametrize("tied", [True, False])
def test_scanned_equals_unstacked(tied):
    scanned = random_model(
        head=HeadConfig(tied=tied), attention=AttentionConfig(qkv_bias=True, out_bias=True)
    )
    listed = with_scanned_layers(scanned, False)
    tokens = draw_tokens(2, 11)
    assert relative_l2(logits_of(listed, tokens), logits_of(scanned, tokens)) < TOLERANCE
    assert not listed.config.scan_layers
    again = with_scanned_layers(listed, True)
    assert again.config == scanned.config
    before, after = named_parameters(scanned), named_parameters(again)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name].get_value(), after[name].get_value())


def test_restacking_to_the_same_form_returns_the_same_model(model):
    assert with_scanned_layers(model, True) is model
    with_scanned_layers(model, False)
    assert model.config.scan_layers
    assert "layers.0:3.attn.q_proj.kernel" in named_parameters(model)


def test_abstract_70b_model_allocates_nothing():
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    stacked = build_abstract(LLAMA_70B)
    listed = build_abstract(dataclasses.replace(LLAMA_70B, num_layers=4, scan_layers=False))
    assert count_parameters(stacked) == 70_553_706_496
    assert count_parameters(stacked) - count_parameters(listed) == 76 * 855_654_400
    for variable in (*named_parameters(stacked).values(), *named_parameters(listed).values()):
        assert isinstance(variable.get_value(), jax.ShapeDtypeStruct)
        assert variable.get_value().dtype == jnp.bfloat16
    assert sum(array.nbytes for array in jax.live_arrays()) <= before


def test_model_works_in_tree_mode():
    """Tree mode, Flax's announced default: modules are trees without shared references."""
    config = with_fields(
        TINY, {"attention.qkv_bias": True, "attention.out_bias": True}, num_layers=2
    )
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        model = build(config, rngs=nnx.Rngs(0))
        nnx.check_pytree(model)
        graphdef, state = nnx.split(model)

        def loss(state, tokens):
            return jnp.square(nnx.merge(graphdef, state)(tokens).logits).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(state, draw_tokens(2, 9))
        listed = with_scanned_layers(model, False)
        nnx.check_pytree(listed)
    assert np.isfinite(value)
    for _, variable in nnx.to_flat_state(gradient):
        assert np.abs(variable.get_value()).max() > 0
    assert relative_l2(
        logits_of(listed, draw_tokens(2, 9)), logits_of(model, draw_tokens(2, 9))
    ) < (TOLERANCE)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_pytree_of_a_model_holds_all_its_parameters(scan, tied):
    model = build_abstract(with_fields(TINY, {"head.tied": tied}, scan_layers=scan))
    nnx.check_pytree(model)
    assert all(type(v) is nnx.Param for v in named_parameters(model).values())
    leaves = jax.tree.leaves(model)
    assert len(leaves) == len(named_parameters(model))


def test_every_parameter_matters(model):
    """Every parameter has a gradient, so none is unused or replaced by another."""
    graphdef, state = nnx.split(model)
    tokens = draw_tokens(2, 9)

    @functools.partial(jax.jit)
    def gradient(state):
        return jax.grad(lambda s: jnp.square(nnx.merge(graphdef, s)(tokens).logits).sum())(state)

    for path, variable in nnx.to_flat_state(gradient(state)):
        found = np.asarray(variable.get_value())
        if path[0] == "layers":
            assert (np.abs(found).max(axis=tuple(range(1, found.ndim))) > 0).all(), path
        assert np.abs(found).max() > 0, path


@pytest.mark.parametrize(
    ("tokens", "options", "complaint"),
    [
        (np.zeros(5, int), {}, "rank"),
        (np.zeros((2, 5)), {}, "type"),
        (np.zeros((2, 5), int), {"segment_ids": np.ones((2, 4), int)}, "broadcast"),
        (np.zeros((2, 5), int), {"positions": np.arange(5)}, "rank"),
    ],
)
def test_arrays_of_wrong_shape_or_type_are_rejected(model, tokens, options, complaint):
    with pytest.raises(AssertionError, match=complaint):
        model(tokens, **options)


def test_without_a_head_the_output_is_the_hidden_states():
    model = random_model(head=HeadConfig(kind="none"))
    tokens = jnp.arange(12)[None]
    hidden, _, _ = model.hidden(tokens)
    np.testing.assert_array_equal(model(tokens).logits, hidden)
    assert not [name for name in named_parameters(model) if "head" in name]
    half = with_fields(model.config, {"numerics.dtype": "bfloat16"})
    assert build(half, rngs=nnx.Rngs(0))(tokens).logits.dtype == jnp.float32
