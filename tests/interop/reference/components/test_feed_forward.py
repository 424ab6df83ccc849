"""Feed-forward networks of the components, dense and as a mixture, token by token by hand."""

import pytest
import torch
from float64 import assert_close, normal

from jaxllm.interop.reference.components.feed_forward import FFN, MOE, FFNConfig


def test_a_dense_network_is_two_products_with_a_relu_between(draw):
    ffn, x = draw(FFN(24, 40)), normal(2, 5, 24)
    hidden = (x @ ffn.layer_1.weight.T + ffn.layer_1.bias).clamp(min=0)
    assert_close(ffn(x), hidden @ ffn.layer_2.weight.T + ffn.layer_2.bias)


def test_a_config_builds_what_it_says():
    dense = FFNConfig(embed_dim=24, latent_dim=40).build()
    assert isinstance(dense, FFN)
    assert dense.layer_1.weight.shape == (40, 24)
    sizes = {"num_experts": 3, "capacity": 7, "topk": 2, "alpha": 0.5}
    moe = FFNConfig(embed_dim=24, latent_dim=40, use_moe=True, **sizes).build()
    assert isinstance(moe, MOE)
    assert (len(moe.experts), moe.capacity, moe.topk, moe.alpha) == (3, 7, 2, 0.5)
    assert moe.overflow_expert.layer_2.weight.shape == (24, 40)


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
    assert_close(out.flatten(0, 1), expected)
    products = [len(own) / 18 * torch.stack(own).mean() for own in weights if own]
    assert_close(aux, 0.3 * 5 * sum(products))


def test_mixtures_that_cannot_be_are_errors():
    sizes = {"embed_dim": 8, "latent_dim": 8, "use_moe": True}
    with pytest.raises(ValueError, match=r"use_moe=True needs .* num_experts=4, capacity=None"):
        FFNConfig(**sizes, num_experts=4)
    with pytest.raises(ValueError, match="topk=5 is not between 1 and num_experts=4"):
        FFNConfig(**sizes, num_experts=4, capacity=2, topk=5)
