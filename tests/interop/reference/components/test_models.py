"""The components reference against PyTorch's attention, and cached passes against full ones."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from jaxllm.interop.reference.components.attention import (
    GroupQueryAttention,
    MultiHeadAttention,
    MultiQueryAttention,
    get_attention,
)
from jaxllm.interop.reference.components.feed_forward import MOE, FFNConfig
from jaxllm.interop.reference.components.layers import LayerConfig, TransformerEncoderLayer
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


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def splits(length: int, first: int) -> list[tuple[int, int]]:
    """Returns spans of tokens: a prefix, then two tokens at once, then one at a time."""
    cuts = [0, first, min(first + 2, length), *range(first + 3, length + 1)]
    return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]


# ---- attention


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_pytorch(draw, kind, causal):
    attention = draw(get_attention(kind, 24, 4, apply_causal_mask=causal))
    x = normal(2, 9, 24)
    q, k, v = (
        projection(x).unflatten(-1, (-1, 6)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    assert k.shape[1] == {"mha": 4, "mqa": 1, "gqa": 2}[kind]
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    close(attention(x), attention.out_proj(out.transpose(1, 2).flatten(2)))
    close(attention(x, x, x), attention(x))


def test_group_query_attention_covers_one_group_to_all_heads(draw):
    x = normal(2, 9, 24)
    for groups, other in ((1, MultiQueryAttention(24, 4)), (4, MultiHeadAttention(24, 4))):
        close(draw(GroupQueryAttention(24, 4, groups))(x), draw(other)(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expanding", [True, False])
@pytest.mark.parametrize("first", range(1, 12))
def test_cached_attention_equals_uncached(draw, kind, expanding, first):
    """Cached passes are split at every boundary of the window."""
    plain = draw(get_attention(kind, 24, 4, None, True, False, WINDOW))
    cached = draw(get_attention(kind, 24, 4, None, True, True, WINDOW))
    x = normal(2, 13, 24)
    parts = [cached(x[:, a:b], expanding_context=expanding) for a, b in splits(13, first)]
    close(torch.cat(parts, dim=1), plain(x, expanding_context=expanding))
    assert cached.cache[0].shape[1] == (13 if expanding else WINDOW)


def test_sliding_window_hides_earlier_tokens(draw):
    attention = draw(MultiHeadAttention(24, 4, True, False, WINDOW))
    x, other = normal(1, 13, 24), normal(1, 13, 24)
    other[:, 2] += 1
    moved = (attention(x, None, None, False) != attention(other, None, None, False)).any(-1)[0]
    assert moved.tolist() == [2 <= i < 2 + WINDOW for i in range(13)]


def test_encoder_keys_are_projected_once_per_source(draw):
    plain, cached = (draw(MultiHeadAttention(24, 4, use_kv_cache=use)) for use in (False, True))
    calls = []
    cached.k_proj.register_forward_hook(lambda *_: calls.append(1))
    x, source, another = normal(2, 5, 24), normal(2, 7, 24, seed=1), normal(2, 8, 24, seed=2)
    for t in range(5):
        close(cached(x[:, t : t + 1], source), plain(x, source)[:, t : t + 1])
    assert len(calls) == 1
    close(cached(x, another), plain(x, another))
    assert len(calls) == 2


def test_cached_keys_keep_gradients(draw):
    plain, cached = (draw(MultiHeadAttention(24, 4, True, use)) for use in (False, True))
    x = normal(2, 6, 24)
    plain(x).square().sum().backward()
    parts = torch.cat([cached(x[:, :4]), cached(x[:, 4:])], dim=1)
    parts.square().sum().backward()
    close(cached.k_proj.weight.grad, plain.k_proj.weight.grad)


# ---- mixture of experts


@pytest.mark.parametrize(("topk", "capacity"), [(1, 3), (2, 4), (3, 100)])
def test_experts_take_tokens_in_order_up_to_their_capacity(draw, topk, capacity):
    moe = draw(MOE(24, 40, 5, capacity, alpha=0.3, topk=topk))
    x = normal(3, 6, 24)
    taken, expected, spilled = [0] * 5, torch.zeros(18, 24, dtype=torch.float64), 0
    weights = [[] for _ in range(5)]  # of the tokens that each expert took
    for s, token in enumerate(x.flatten(0, 1)):
        probs = moe.router(token).softmax(-1)
        best = probs.argsort(descending=True)[:topk]
        for e in best.tolist():
            is_full = taken[e] == capacity
            taken[e] += not is_full
            spilled += is_full
            expert = moe.overflow_expert if is_full else moe.experts[e]
            weight = (probs[e] / probs[best].sum()).detach()
            expected[s] += (weight * expert(token)).detach()
            weights[e] += [] if is_full else [weight]
    assert (spilled > 0) == (capacity < 100)
    out, aux = moe(x)
    close(out.flatten(0, 1), expected)
    products = [len(own) / 18 * torch.stack(own).mean() for own in weights if own]
    close(aux, 0.3 * 5 * sum(products))


def test_aux_loss_sums_the_layers_and_trains_the_routers(draw):
    ffn = FFNConfig(embed_dim=24, latent_dim=40, use_moe=True, num_experts=4, capacity=3, topk=2)
    model = draw(AutoregressiveTransformerModel(num_layers=2, ffn_config=ffn, **SIZES))
    model(normal(2, 5, 3))
    close(model.aux_loss, sum(layer.aux_loss for layer in model.layers))
    model.aux_loss.backward()
    assert all(layer.ffn.router.weight.grad.any() for layer in model.layers)
    dense = draw(AutoregressiveTransformerModel(num_layers=2, **SIZES))
    dense(normal(2, 5, 3))
    assert dense.aux_loss == 0


# ---- models


def test_encoder_layer_equals_pytorch(draw):
    config = LayerConfig(
        embed_dim=24, ffn_latent_dim=40, num_heads=4, max_seq_len=9, apply_causal_mask=False
    )
    layer = draw(TransformerEncoderLayer(config))
    theirs = nn.TransformerEncoderLayer(24, 4, 40, 0.0, batch_first=True).double().eval()
    attn, parts = layer.attn, (layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj)
    state = {
        "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
        "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
    }
    for name, module in {
        **{"self_attn.out_proj": attn.out_proj, "norm1": layer.norm_1, "norm2": layer.norm_2},
        **{"linear1": layer.ffn.layer_1, "linear2": layer.ffn.layer_2},
    }.items():
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    theirs.load_state_dict(state)
    x = normal(2, 9, 24)
    close(layer(x), theirs(x))


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
        close(torch.cat(parts, dim=1), whole)
        cached.reset_cache()
    close(cached.generate_next_token(x, expanding), whole[:, -1:])


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
        close(encoded, plain.encode(source))
        for _ in range(WINDOW - 1 if expanding else 12):
            output = cached.decode(target, encoded, expanding)
            assert output.shape == (2, 1, 3)
            close(output, plain.decode(target, encoded, expanding)[:, -1:])
            target = torch.cat([target, output[:, -1:]], dim=1)
    close(cached(source, target[:, :4]), plain(source, target[:, :4]))


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
    close(model(x), tokens(x).mean(dim=1))


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
        ({"num_heads": 5}, "embed_dim=24 is not a multiple of num_heads=5"),
        (
            {"attention_type": "gqa", "num_groups": 3},
            "num_heads=4 is not a multiple of num_groups=3",
        ),
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


def test_invalid_expert_settings_are_errors():
    sizes = {"embed_dim": 8, "latent_dim": 8, "use_moe": True}
    with pytest.raises(ValueError, match=r"use_moe=True needs .* num_experts=4, capacity=None"):
        FFNConfig(**sizes, num_experts=4)
    with pytest.raises(ValueError, match="topk=5 is not between 1 and num_experts=4"):
        FFNConfig(**sizes, num_experts=4, capacity=2, topk=5)


def test_sequences_that_are_too_long_are_errors(draw):
    model = draw(AutoregressiveTransformerModel(num_layers=1, use_kv_cache=True, **SIZES))
    model(normal(2, 4, 3))
    with pytest.raises(ValueError, match="7 tokens exceed max_seq_len=6"):
        model(normal(2, 3, 3))
    with pytest.raises(ValueError, match="max_seq_len=None"):
        draw(MultiHeadAttention(24, 4, True))(normal(2, 4, 24), expanding_context=False)
    options = {"num_encoder_layers": 1, "num_decoder_layers": 1, "use_kv_cache": True, **SIZES}
    model = draw(EncoderDecoder(**options))
    encoded = model.encode(normal(2, 5, 3))
    model.decode(normal(2, 2, 3), encoded)
    with pytest.raises(ValueError, match="no new tokens: 2 target tokens, 2 already decoded"):
        model.decode(normal(2, 2, 3), encoded)
    with pytest.raises(ValueError, match="7 tokens exceed max_seq_len=6"):
        model.encode(normal(2, 7, 3))
