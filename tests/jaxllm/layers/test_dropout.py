"""Dropout applies where specified, depends only on the key, and is off without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import TINY, random_model, random_of, relative_l2

from jaxllm.config import (
    EncoderDecoderConfig,
    ExpertsConfig,
    LayerKind,
    NormConfig,
    StackConfig,
    with_fields,
)
from jaxllm.layers.context import Context
from jaxllm.layers.dropout import dropout, layer_keys, subkeys
from jaxllm.models import with_scanned_layers

TOLERANCE = 2e-6  # relative L2, float32
RATE = 0.3
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 9))
KEY = jax.random.key(5)
STACK = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(StackConfig)}
ENCODER_DECODER = EncoderDecoderConfig(
    encoder=with_fields(StackConfig(**STACK), {"attention.causal": False}, dropout=RATE),
    decoder=with_fields(TINY, {"attention.cross": True}, dropout=RATE),
)


@jax.jit
def logits_of(model, key):
    return model(TOKENS, dropout_key=key).logits


def test_dropout_drops_the_rate_and_keeps_the_mean():
    x = jnp.full((300, 400), 3.0)
    dropped = dropout(x, RATE, KEY)
    assert float(jnp.mean(dropped == 0)) == pytest.approx(RATE, abs=0.01)
    np.testing.assert_allclose(dropped[dropped != 0], 3.0 / (1 - RATE), rtol=1e-6)
    assert float(dropped.mean()) == pytest.approx(3.0, rel=0.01)
    assert dropout(x.astype(jnp.bfloat16), RATE, KEY).dtype == jnp.bfloat16
    assert dropout(x, RATE, None) is x


def test_layer_keys_do_not_depend_on_stacking():
    one_by_one = [jax.random.key_data(layer_keys(KEY, range(i, i + 1))) for i in range(6)]
    together = jax.random.key_data(layer_keys(KEY, range(1, 6, 2)))
    np.testing.assert_array_equal(together, np.stack(one_by_one[1::2]))
    assert len({key.tobytes() for key in map(np.asarray, one_by_one)}) == 6
    assert subkeys(None, 3) == (None, None, None)


@pytest.mark.parametrize("placement", ["pre", "post", "output", "sandwich", "parallel"])
def test_sublayer_outputs_are_dropped_out(placement):
    """Compares with masks drawn by hand from each sublayer's key, applied to its output."""
    model = random_model(num_layers=1, dropout=RATE, norms=NormConfig(placement=placement))
    block, x = model.layers["0"], jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 32)))
    x = x.astype(jnp.float32)
    attn_key, _, mlp_key = jax.random.split(KEY, 3)

    def scaled(key):
        return jax.random.bernoulli(key, 1 - RATE, x.shape) / (1 - RATE)

    same = {"pre": block.attn_norm, "sandwich": block.attn_norm, "parallel": block.attn_norm}
    enter = same.get(placement, lambda x: x)
    added = block.attn(enter(x), Context())[0]
    if placement == "parallel":
        expected = x + added * scaled(attn_key) + block.mlp(block.mlp_norm(x)) * scaled(mlp_key)
    else:
        out = {"output": block.attn_norm, "sandwich": block.attn_out_norm}
        h = x + out.get(placement, lambda x: x)(added) * scaled(attn_key)
        h = block.attn_norm(h) if placement == "post" else h
        enter = block.mlp_norm if placement in ("pre", "sandwich") else lambda x: x
        out = {"output": block.mlp_norm, "sandwich": block.mlp_out_norm}
        added = out.get(placement, lambda x: x)(block.mlp(enter(h)))
        expected = h + added * scaled(mlp_key)
        expected = block.mlp_norm(expected) if placement == "post" else expected
    assert relative_l2(block(x, Context(dropout_key=KEY))[0], expected) < TOLERANCE


def test_embeddings_are_dropped_out():
    """Uses layers that add nothing, so that only the embeddings remain."""
    model = random_model(num_layers=1, dropout=RATE, norms=NormConfig(final=False))
    for projection in (model.layers["0"].attn.o_proj, model.layers["0"].mlp.down_proj):
        projection.kernel.set_value(jnp.zeros_like(projection.kernel.get_value()))
    plain = np.asarray(model.embed_tokens(TOKENS))
    found = np.asarray(model.hidden(TOKENS, Context(dropout_key=KEY))[0])
    assert 0.2 < (found == 0).mean() < 0.4
    np.testing.assert_allclose(found[found != 0], (plain / (1 - RATE))[found != 0], rtol=1e-6)


def test_without_a_key_the_program_has_no_dropout():
    plain, model = random_model(), random_model(dropout=RATE)
    np.testing.assert_array_equal(logits_of(model, None), logits_of(plain, None))

    def lowered(model, key):
        return jax.jit(lambda key: model(TOKENS, dropout_key=key).logits).lower(key).as_text()

    assert lowered(model, None) == lowered(plain, None)
    assert lowered(plain, None) != lowered(model, KEY)
    np.testing.assert_array_equal(logits_of(plain, KEY), logits_of(plain, None))


def test_dropout_depends_on_the_key():
    model = random_model(dropout=RATE)
    np.testing.assert_array_equal(logits_of(model, KEY), logits_of(model, KEY))
    other = jax.random.fold_in(KEY, 1)
    for one, two in ((KEY, other), (KEY, None)):
        assert relative_l2(logits_of(model, one), logits_of(model, two)) > 0.1


PATTERN = (LayerKind(), LayerKind(rope="none", mlp="experts"))
EXPERTS = ExpertsConfig(num_experts=5, top_k=2, mlp_dim=24)


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "changes",
    examples([{}, {"num_layers": 5, "pattern": PATTERN, "experts": EXPERTS}], {}),
    ids=["alike", "alternating"],
)
def test_dropout_does_not_depend_on_scan_or_remat(changes):
    def loss(model, key):
        return (model(TOKENS, dropout_key=key).logits ** 2).mean()

    both = jax.jit(jax.value_and_grad(loss))
    value, gradient = both(random_model(**changes, dropout=RATE), KEY)
    listed = with_scanned_layers(random_model(**changes, dropout=RATE), False)
    assert float(both(listed, KEY)[0]) == pytest.approx(float(value), rel=TOLERANCE)
    for remat in ("dots", "full"):
        again, other = both(random_model(**changes, dropout=RATE, remat=remat), KEY)
        assert float(again) == pytest.approx(float(value), rel=TOLERANCE)
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(gradient), strict=True):
            assert relative_l2(a, b) < 1e-5


@pytest.mark.exhaustive
def test_encoder_and_decoder_have_separate_dropout_keys():
    model = random_of(ENCODER_DECODER)

    @jax.jit
    def run(key):
        return model(TOKENS, TOKENS[:, :5], dropout_key=key).logits

    np.testing.assert_array_equal(run(KEY), run(KEY))
    assert relative_l2(run(KEY), run(None)) > 0.1
    assert relative_l2(run(KEY), run(jax.random.fold_in(KEY, 1))) > 0.1
    src_key, tgt_key = jax.random.split(KEY)
    source, _ = model.encode(TOKENS, dropout_key=src_key)
    context = Context(source=source, dropout_key=tgt_key)
    hidden, _, _ = model.decoder.hidden(TOKENS[:, :5], context)
    assert relative_l2(model.decoder.unembed(hidden), run(KEY)) < TOLERANCE


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_invalid_dropout_rate_is_rejected(rate):
    with pytest.raises(ValueError, match=f"dropout={rate} must be at least 0 and below 1"):
        dataclasses.replace(TINY, dropout=rate)
