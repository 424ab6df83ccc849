"""Models of three common sizes: a decoder and an encoder-decoder, with post-norm layers."""

import math
from collections.abc import Mapping
from typing import Any

from .config import DecoderConfig, EncoderDecoderConfig, make_config, with_fields
from .errors import UserError

# By name: embed_dim, num_layers (of each stack), num_heads, mlp_dim. About 10, 125 and 350 million
# parameters as `gpt` with a vocabulary of 32,000, 50,257 and 50,257.
SIZES = {
    "tiny": (256, 4, 4, 1024),
    "small": (768, 12, 12, 3072),
    "medium": (1024, 24, 16, 4096),
}


def gpt(
    size: str, vocab_size: int = 50257, changes: Mapping[str, Any] = {}, **fields: Any
) -> DecoderConfig:
    """A decoder with learned positions, whose head is its embedding.

    `changes` and `fields` are those of `with_fields`. Raises UserError for a size that is not
    among `SIZES`.
    """
    decoder = {"positions.kind": "learned", "vocab_size": vocab_size, "head.tied": True}
    config = make_config({**_layers(size), **decoder})
    assert isinstance(config, DecoderConfig), "by its fields"
    return with_fields(config, changes, **fields)


def transformer(
    size: str,
    source_vocab_size: int = 50257,
    vocab_size: int = 50257,
    changes: Mapping[str, Any] = {},
    **fields: Any,
) -> EncoderDecoderConfig:
    """The encoder-decoder of Vaswani et al. (2017), with an embedding of its own for each side.

    `changes` and `fields` are those of `with_fields`, for both stacks. Raises UserError for a
    size that is not among `SIZES`.
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
    assert isinstance(config, EncoderDecoderConfig), "by its fields"
    return with_fields(config, changes, **fields)


def _layers(size: str) -> dict[str, Any]:
    """The fields of a stack, by dotted names."""
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
