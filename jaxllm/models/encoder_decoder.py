"""Encoder-decoder models over tokens (Vaswani et al., 2017)."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import EncoderDecoderConfig
from jaxllm.layers.linear import Embedding

from .decoder import Decoder
from .stack import Stack, check_length
from .two_stacks import TwoStacks


class EncoderDecoder(TwoStacks):
    """Maps source and target tokens to the logits of the target."""

    config: EncoderDecoderConfig
    decoder: Decoder

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.origin: Origin | None = None  # set when weights are loaded
        V = config.source_vocab_size
        own = None if V is None else Embedding(V, config.encoder, rngs=rngs)
        self.source_embed = nnx.data(own)
        self.encoder = Stack(config.encoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, rngs=rngs)

    def embed_source(self, src_BS: Array) -> Array:
        """Embeds source tokens, BSD. Raises UserError if they exceed shared positions."""
        embed = self.decoder.embed if self.source_embed is None else self.source_embed
        x_BSD = embed(src_BS)
        if self.config.share_positions:
            table = self.decoder.embed_position
            assert table is not None, "checked by the config"
            check_length(src_BS.shape[1], self.config.longest_source)
            x_BSD += table(jnp.arange(src_BS.shape[1])[None])
        return x_BSD
