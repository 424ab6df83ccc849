"""Preset configs in three sizes: a GPT-style decoder and an encoder-decoder, both post-norm."""

import math
from collections.abc import Mapping
from typing import Any

from .config import DecoderConfig, EncoderDecoderConfig, make_config, with_fields
from .errors import UserError

# Name: (embed_dim, num_layers of each stack, num_heads, mlp_dim). As `gpt` with vocabularies of
# 32,000, 50,257 and 50,257 tokens, they have about 10, 125 and 350 million parameters.
SIZES = {
    "tiny": (256, 4, 4, 1024),
    "small": (768, 12, 12, 3072),
    "medium": (1024, 24, 16, 4096),
}


def gpt(
    size: str, vocab_size: int = 50257, changes: Mapping[str, Any] = {}, **fields: Any
) -> DecoderConfig:
    """Returns the config of a decoder with learned positions and a tied head.

    Args:
        size: a name in `SIZES`.
        vocab_size: number of tokens.
        changes: fields to change, by dotted name, as for `with_fields`.
        fields: further fields to change.

    Raises:
        UserError: `size` is not in `SIZES`.
    """
    decoder = {"positions.kind": "learned", "vocab_size": vocab_size, "head.tied": True}
    config = make_config({**_layers(size), **decoder})
    assert isinstance(config, DecoderConfig), "these fields make a decoder"
    return with_fields(config, changes, **fields)


def transformer(
    size: str,
    source_vocab_size: int = 50257,
    vocab_size: int = 50257,
    changes: Mapping[str, Any] = {},
    **fields: Any,
) -> EncoderDecoderConfig:
    """Returns the config of the encoder-decoder of Vaswani et al. (2017).

    Source and target have separate embeddings.

    Args:
        size: a name in `SIZES`.
        source_vocab_size: number of source tokens.
        vocab_size: number of target tokens.
        changes: fields of both stacks to change, by dotted name, as for `with_fields`.
        fields: further fields of both stacks to change.

    Raises:
        UserError: `size` is not in `SIZES`.
    """
    layers = {
        **_layers(size),
        "positions.kind": "sinusoidal",
        "positions.waves": "exp",
        "norms.final": False,
    }
    layers["embed_scale"] = math.sqrt(layers["embed_dim"])
    decoder = {"attention.cross": True, "vocab_size": vocab_size, "head.bias": True}
    config = make_config(
        {
            "encoder": {**layers, "attention.causal": False},
            "decoder": {**layers, **decoder},
            "source_vocab_size": source_vocab_size,
        }
    )
    assert isinstance(config, EncoderDecoderConfig), "these fields make an encoder-decoder"
    return with_fields(config, changes, **fields)


def _layers(size: str) -> dict[str, Any]:
    """Returns the fields that the presets share, by dotted name."""
    if size not in SIZES:
        raise UserError(f"size={size!r} is not one of {', '.join(SIZES)}")
    embed_dim, num_layers, num_heads, mlp_dim = SIZES[size]
    return {
        "embed_dim": embed_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": embed_dim // num_heads,
        "mlp_dim": mlp_dim,
        "max_len": 512,
        "norms.kind": "layer",
        "norms.placement": "post",
        "norms.eps": 1e-6,
        "norms.final_eps": 1e-5,
        "rope.layout": "interleaved",
        "attention.qkv_bias": True,
        "attention.out_bias": True,
        "mlp.activation": "relu",
        "mlp.gated": False,
        "mlp.bias": True,
        "dropout": 0.1,
        "init.kind": "xavier",
    }
