"""Layers of the components beside PyTorch's, and their sinusoids."""

import itertools
import math

import pytest
import torch
from float64 import assert_close, normal
from torch import nn

from jaxllm.interop.reference.components.attention import GroupQueryAttention
from jaxllm.interop.reference.components.feed_forward import FFNConfig
from jaxllm.interop.reference.components.layers import (
    LayerConfig,
    PositionalEncoding,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)

SIZES = {"embed_dim": 24, "ffn_latent_dim": 40, "num_heads": 4, "max_seq_len": 9}


def state_of(name: str, attention: GroupQueryAttention) -> dict[str, torch.Tensor]:
    """The weights of an attention by PyTorch's names."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return {
        f"{name}.in_proj_weight": torch.cat([part.weight for part in parts]),
        f"{name}.in_proj_bias": torch.cat([part.bias for part in parts]),
        **{f"{name}.out_proj.{k}": v for k, v in attention.out_proj.state_dict().items()},
    }


def renamed(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The weights of modules by the modules' names in PyTorch."""
    return {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def test_an_encoder_layer_is_that_of_pytorch(draw):
    layer = draw(TransformerEncoderLayer(LayerConfig(**SIZES, apply_causal_mask=False)))
    theirs = nn.TransformerEncoderLayer(24, 4, 40, 0.0, batch_first=True).double().eval()
    modules = {
        **{"norm1": layer.norm_1, "norm2": layer.norm_2},
        **{"linear1": layer.ffn.layer_1, "linear2": layer.ffn.layer_2},
    }
    theirs.load_state_dict(state_of("self_attn", layer.attn) | renamed(modules))
    x = normal(2, 9, 24)
    assert_close(layer(x), theirs(x))


def test_a_decoder_layer_is_that_of_pytorch(draw):
    """The mask is that of self-attention: every token sees all of the source."""
    layer = draw(TransformerDecoderLayer(LayerConfig(**SIZES, apply_causal_mask=True)))
    theirs = nn.TransformerDecoderLayer(24, 4, 40, 0.0, batch_first=True).double().eval()
    modules = {
        **{f"norm{i}": getattr(layer, f"layer_norm_{i}") for i in (1, 2, 3)},
        **{"linear1": layer.ffn.layer_1, "linear2": layer.ffn.layer_2},
    }
    theirs.load_state_dict(
        state_of("self_attn", layer.self_attention)
        | state_of("multihead_attn", layer.cross_attention)
        | renamed(modules)
    )
    x, source = normal(2, 9, 24), normal(2, 7, 24, seed=1)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    assert_close(layer(x, source), theirs(x, source, tgt_mask=hidden))


def test_positions_are_sinusoids_beyond_the_buffer_too():
    """A sliding window carries positions past the table that checkpoints hold."""
    encoding, x = PositionalEncoding(6, 5), normal(1, 4, 6)
    assert encoding.pe.shape == (1, 5, 6)
    found = encoding(x, start=7) - x
    for t, j in itertools.product(range(4), range(3)):
        angle = (7 + t) / 10000 ** (2 * j / 6)
        assert found[0, t, 2 * j].item() == pytest.approx(math.sin(angle), abs=1e-14)
        assert found[0, t, 2 * j + 1].item() == pytest.approx(math.cos(angle), abs=1e-14)
    table = encoding(torch.zeros(1, 5, 6))
    torch.testing.assert_close(encoding.pe, table, rtol=0, atol=0)


def test_a_layer_keeps_the_loss_of_its_experts(draw):
    ffn = FFNConfig(embed_dim=24, latent_dim=40, use_moe=True, num_experts=3, capacity=4)
    config = LayerConfig(**SIZES, apply_causal_mask=True, ffn_config=ffn)
    layer, x = draw(TransformerEncoderLayer(config)), normal(2, 5, 24)
    layer(x)
    hidden = layer.norm_1(x + layer.attn(x))
    assert_close(layer.aux_loss, layer.ffn(hidden)[1])
    assert layer.aux_loss > 0


def test_a_feed_forward_network_of_other_sizes_is_an_error():
    with pytest.raises(ValueError, match=r"\(24, 41\).*\(24, 40\)"):
        LayerConfig(
            **SIZES, apply_causal_mask=True, ffn_config=FFNConfig(embed_dim=24, latent_dim=41)
        )
