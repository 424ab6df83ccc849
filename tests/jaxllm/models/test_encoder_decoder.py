"""Properties of all encoder-decoders: masks, packing, generation and config checks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_of, relative_l2

from jaxllm.config import (
    EncoderDecoderConfig,
    PositionConfig,
    RelativeBuckets,
    StackConfig,
    from_dict,
    to_dict,
    with_fields,
)
from jaxllm.generation import generate
from jaxllm.params import describe, from_description, named_parameters, split, stacked_layers

TOKENS = np.random.default_rng(0)
SRC, TGT = TOKENS.integers(0, 96, (2, 11)), TOKENS.integers(0, 96, (2, 9))


def config_of(encoder: dict | None = None, decoder: dict | None = None, **changes):
    """A tiny config with relative biases, post-norm, and four and three layers."""
    buckets = RelativeBuckets(count=8, max_distance=20)
    shared = {"positions": PositionConfig(kind="relative", relative=buckets)}
    shared |= {"norms.kind": "layer", "norms.placement": "post", "norms.embed": True}
    names = {field.name for field in dataclasses.fields(StackConfig)}
    sizes = {name: value for name, value in vars(TINY).items() if name in names}
    one = {**shared, "num_layers": 4, "attention.causal": False, **(encoder or {})}
    other = {**shared, "attention.cross": True, **(decoder or {})}
    return EncoderDecoderConfig(
        encoder=with_fields(StackConfig(**sizes), one),
        decoder=with_fields(TINY, other),
        **changes,
    )


def logits_of(model, src=SRC, tgt=TGT, **masks):
    return np.asarray(jax.jit(lambda model: model(src, tgt, **masks).logits)(model))


@pytest.fixture(scope="module")
def model():
    return random_of(config_of())


def changed(tokens: np.ndarray, place: int) -> np.ndarray:
    other = tokens.copy()
    other[:, place] = (other[:, place] + 1) % 96
    return other


def test_decoder_sees_all_of_the_source_and_no_later_target_tokens(model):
    before = logits_of(model)
    for place in (0, 10):
        after = logits_of(model, src=changed(SRC, place))
        assert (np.abs(after - before).max(-1) > 1e-4).all()
    after = logits_of(model, tgt=changed(TGT, 5))
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    assert (np.abs(after - before)[:, 5:].max(-1) > 1e-4).all()


def test_source_padding_changes_nothing(model):
    padded = np.concatenate([SRC, np.full((2, 5), 7)], axis=1)
    mask = np.arange(16) < 11
    found = logits_of(model, src=padded, src_segment_ids=np.stack([mask] * 2))
    assert relative_l2(found, logits_of(model)) <= 1e-6
    assert relative_l2(logits_of(model, src=padded), logits_of(model)) > 1e-3


def test_packed_pairs_do_not_see_each_other(model):
    """Target tokens see the source tokens with their own segment id."""
    src, tgt = SRC.reshape(1, -1), TGT.reshape(1, -1)
    masks = {
        "src_segment_ids": np.repeat([[1, 2]], 11, axis=1),
        "segment_ids": np.repeat([[1, 2]], 9, axis=1),
    }
    found = logits_of(model, src=src, tgt=tgt, **masks)
    assert relative_l2(found.reshape(2, 9, -1), logits_of(model)) <= 1e-6


def test_source_can_have_its_own_embedding():
    own = random_of(config_of(source_vocab_size=50))
    names = named_parameters(own)
    assert names["source_embed.embedding"].get_value().shape == (50, 32)
    assert "source_embed.embedding" not in named_parameters(random_of(config_of()))
    src = SRC % 50
    before = logits_of(own, src=src)
    table = own.source_embed.embedding
    table.set_value(table.get_value()[::-1])
    assert relative_l2(logits_of(own, src=src), before) > 1e-3


def test_layers_are_stacked_separately_in_each_stack(model):
    assert stacked_layers(model) == {
        "encoder.layers": {"0:4": range(4)},
        "decoder.layers": {"0:3": range(3)},
    }


@pytest.mark.exhaustive
def test_remat_does_not_change_gradients(model):
    def gradient(config):
        bind, _ = split(random_of(config))
        loss = lambda params: jnp.square(bind(params)(SRC, TGT).logits).mean()  # noqa: E731
        return jax.jit(jax.grad(loss))(split(model)[1])

    plain, full = (
        gradient(config_of({"remat": remat}, {"remat": remat})) for remat in ("none", "full")
    )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(full), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.exhaustive
def test_generation_starts_from_the_start_token():
    model = random_of(config_of(start_token=3))
    prompts = [SRC[0].tolist(), SRC[1, :4].tolist()]
    for prompt, found in zip(prompts, generate(model, prompts, 3), strict=True):
        # The decoder is causal, so one pass gives the best token after each prefix.
        logits = logits_of(model, np.array([prompt]), np.array([[3, *found[:-1]]]))
        assert found == logits[0].argmax(-1).tolist()


def test_generation_without_start_token_is_rejected(model):
    with pytest.raises(ValueError, match="start_token=None"):
        generate(model, [[1]], 3)


def test_prompts_use_the_source_vocabulary():
    model = random_of(config_of(source_vocab_size=50, start_token=3))
    with pytest.raises(ValueError, match="prompt 0 has token 60, but vocab_size=50"):
        generate(model, [[60]], 3)


def test_decoding_without_a_source_is_rejected(model):
    with pytest.raises(ValueError, match="needs a source"):
        model.decode(TGT)


def test_config_and_description_round_trip(model):
    assert from_dict(to_dict(model.config)) == model.config
    read = from_description(describe(model), {"numerics.dtype": "bfloat16"})
    assert read.config.encoder.numerics.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("encoder", "decoder", "changes", "message"),
    [
        ({"attention.causal": True}, {}, {}, "encoder.attention.causal=True and decoder"),
        ({}, {"attention.cross": False}, {}, "decoder.attention.cross=False"),
        ({"embed_dim": 16}, {}, {}, "embed_dim is 16 in the encoder and 32 in the decoder"),
        ({"embed_scale": 2.0}, {}, {}, "embed_scale is 2.0 in the encoder and 1.0 in the decoder"),
        ({}, {}, {"source_vocab_size": 0}, "source_vocab_size=0 is less than 1"),
        ({}, {}, {"start_token": 96}, "start_token=96 is not a token: .* below vocab_size=96"),
    ],
)
def test_mismatched_stacks_and_tokens_are_rejected(encoder, decoder, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(encoder, decoder, **changes)
