"""Models of three common sizes: a decoder and an encoder-decoder, with post-norm layers."""

import math
from typing import Any

from .config import DecoderConfig, EncoderDecoderConfig, StackConfig, with_fields
from .errors import UserError

# By name: embed_dim, num_layers (of each stack), num_heads, mlp_dim. About 10, 125 and 350 million
# parameters as `gpt` with a vocabulary of 32,000, 50,257 and 50,257.
SIZES = {
    "tiny": (256, 4, 4, 1024),
    "small": (768, 12, 12, 3072),
    "medium": (1024, 24, 16, 4096),
}


def gpt(size: str, vocab_size: int = 50257, **changes: Any) -> DecoderConfig:
    """A decoder with learned positions, whose head is its embedding.

    Raises UserError for a size that is not among `SIZES`.
    """
    config = DecoderConfig(
        **_layers(size), positions="learned", vocab_size=vocab_size, tie_embeddings=True
    )
    return with_fields(config, **changes)


def transformer(
    size: str, source_vocab_size: int = 50257, vocab_size: int = 50257, **changes: Any
) -> EncoderDecoderConfig:
    """The encoder-decoder of Vaswani et al. (2017), with an embedding of its own for each side.

    `changes` are those of both stacks. Raises UserError for a size that is not among `SIZES`.
    """
    layers = _layers(size) | {"positions": "sinusoidal", "waves": "exp", "final_norm": False}
    layers["embed_scale"] = math.sqrt(layers["embed_dim"])
    config = EncoderDecoderConfig(
        encoder=StackConfig(**layers, causal=False),
        decoder=DecoderConfig(
            **layers, cross_attention=True, vocab_size=vocab_size, head_bias=True
        ),
        source_vocab_size=source_vocab_size,
    )
    return with_fields(config, **changes)


def _layers(size: str) -> dict[str, Any]:
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
        "norm": "layer",
        "norm_placement": "post",
        "norm_eps": 1e-6,
        "final_norm_eps": 1e-5,
        "rope_layout": "interleaved",
        "qkv_bias": True,
        "attn_out_bias": True,
        "activation": "relu",
        "gated_mlp": False,
        "mlp_bias": True,
        "dropout": 0.1,
        "init": "xavier",
    }
