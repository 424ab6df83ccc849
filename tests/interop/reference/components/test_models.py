"""The components' models: what tokens see, and each cache against a whole pass."""

import pytest
import torch
from cache_splits import splits
from float64 import assert_close, normal

from jaxllm.interop.reference.components.feed_forward import FFNConfig
from jaxllm.interop.reference.components.models import (
    AutoregressiveTransformerModel,
    EncoderDecoder,
    TransformerModel,
)

WINDOW = 6
KINDS = ("mha", "mqa", "gqa")
SIZES = {
    "input_dim": 3,
    "output_dim": 3,
    "embed_dim": 24,
    "ffn_latent_dim": 40,
    "num_heads": 4,
    "max_seq_len": WINDOW,
}


def test_the_loss_of_all_layers_is_one_and_teaches_the_routers(draw):
    ffn = FFNConfig(embed_dim=24, latent_dim=40, use_moe=True, num_experts=4, capacity=3, topk=2)
    model = draw(AutoregressiveTransformerModel(num_layers=2, ffn_config=ffn, **SIZES))
    model(normal(2, 5, 3))
    assert_close(model.aux_loss, sum(layer.aux_loss for layer in model.layers))
    model.aux_loss.backward()
    assert all(layer.ffn.router.weight.grad.any() for layer in model.layers)
    dense = draw(AutoregressiveTransformerModel(num_layers=2, **SIZES))
    dense(normal(2, 5, 3))
    assert dense.aux_loss == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expanding", [True, False])
@pytest.mark.parametrize("first", [1, 5, 6, 7])
def test_a_cached_model_equals_an_uncached_one(draw, kind, expanding, first):
    length = WINDOW if expanding else 13
    options = {**SIZES, "num_layers": 2, "attention_type": kind}
    plain = draw(AutoregressiveTransformerModel(**options))
    cached = draw(AutoregressiveTransformerModel(**options, use_kv_cache=True))
    x = normal(2, length, 3)
    whole = plain(x, expanding)
    for _ in range(2):
        parts = [cached(x[:, a:b], expanding) for a, b in splits(length, min(first, length))]
        assert_close(torch.cat(parts, dim=1), whole)
        cached.reset_cache()
    assert_close(cached.generate_next_token(x, expanding), whole[:, -1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expanding", [True, False])
def test_a_cached_decoder_equals_an_uncached_one(draw, kind, expanding):
    """The loop in the document: the target grows by the decoded tokens."""
    options = {"num_encoder_layers": 1, "num_decoder_layers": 2, "attention_type": kind, **SIZES}
    plain = draw(EncoderDecoder(**options))
    cached = draw(EncoderDecoder(**options, use_kv_cache=True))
    for seed in (0, 1):
        source, target = normal(2, 5, 3, seed=seed), normal(2, 1, 3, seed=seed)
        encoded = cached.encode(source)
        assert_close(encoded, plain.encode(source))
        for _ in range(WINDOW - 1 if expanding else 12):
            output = cached.decode(target, encoded, expanding)
            assert output.shape == (2, 1, 3)
            assert_close(output, plain.decode(target, encoded, expanding)[:, -1:])
            target = torch.cat([target, output[:, -1:]], dim=1)
    assert_close(cached(source, target[:, :4]), plain(source, target[:, :4]))


def test_encoder_is_bidirectional_and_decoder_is_causal(draw):
    options = {"num_encoder_layers": 1, "num_decoder_layers": 1, **SIZES}
    model = draw(EncoderDecoder(**options))
    source, target = normal(2, 5, 3), normal(2, 6, 3)
    later = target.clone()
    later[:, 3] += 1
    moved = (model(source, target) != model(source, later)).any(-1).any(0)
    assert moved.tolist() == [False] * 3 + [True] * 3
    later = source.clone()
    later[:, 3] += 1
    assert (model.encode(source) != model.encode(later)).any(-1).all()
    unmasked = draw(EncoderDecoder(**options, apply_causal_mask=False))
    later = target.clone()
    later[:, 3] += 1
    assert (unmasked(source, target) != unmasked(source, later)).any(-1).all()


def test_regression_pools_over_the_sequence(draw):
    model = draw(TransformerModel(num_layers=2, **SIZES))
    tokens = draw(AutoregressiveTransformerModel(num_layers=2, apply_causal_mask=False, **SIZES))
    x = normal(2, 5, 3)
    assert model(x).shape == (2, 3)
    assert_close(model(x), tokens(x).mean(dim=1))


def test_float32_agrees_with_float64(draw):
    model = draw(AutoregressiveTransformerModel(num_layers=2, **SIZES))
    x = normal(2, 5, 3)
    exact = model(x)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(model.float()(x.float()).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"attention_type": "mla"}, "attention_type='mla' is not one of mha, mqa, gqa"),
        ({"use_kv_cache": True}, "use_kv_cache=True is not supported: the mean"),
        (
            {"ffn_config": FFNConfig(embed_dim=24, latent_dim=41)},
            r"\(24, 41\), but the model has \(24, 40\)",
        ),
    ],
)
def test_inconsistent_options_are_errors(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        TransformerModel(num_layers=1, **SIZES | options)


def test_sequences_that_are_too_long_are_errors(draw):
    model = draw(AutoregressiveTransformerModel(num_layers=1, use_kv_cache=True, **SIZES))
    model(normal(2, 4, 3))
    with pytest.raises(ValueError, match="7 tokens exceed max_seq_len=6"):
        model(normal(2, 3, 3))
    options = {"num_encoder_layers": 1, "num_decoder_layers": 1, "use_kv_cache": True, **SIZES}
    model = draw(EncoderDecoder(**options))
    encoded = model.encode(normal(2, 5, 3))
    model.decode(normal(2, 2, 3), encoded)
    with pytest.raises(ValueError, match="no new tokens: 2 target tokens, 2 already decoded"):
        model.decode(normal(2, 2, 3), encoded)
    with pytest.raises(ValueError, match="7 tokens exceed max_seq_len=6"):
        model.encode(normal(2, 7, 3))
