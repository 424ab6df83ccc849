"""Encoder-decoder models over continuous inputs."""

import chex
from flax import nnx
from jax import Array

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import SequenceToSequenceConfig
from jaxllm.layers.linear import Linear
from jaxllm.sharding import constrain

from .sequence import SequenceModel
from .stack import Stack, check_length
from .two_stacks import TwoStacks


class SequenceToSequence(TwoStacks):
    """Maps source and target vectors to an output vector for each token of the target."""

    config: SequenceToSequenceConfig
    decoder: SequenceModel

    def __init__(self, config: SequenceToSequenceConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.origin: Origin | None = None  # set when weights are loaded
        shape = (config.source_dim, config.encoder.embed_dim)
        self.source_proj = Linear(
            "BSI,ID->BSD", shape, config=config.encoder, use_bias=True, rngs=rngs
        )
        self.encoder = Stack(config.encoder, rngs=rngs)
        self.decoder = SequenceModel(config.decoder, rngs=rngs)

    def embed_source(self, src_BS: Array) -> Array:
        """Projects source vectors, BSD. Raises ValueError if they exceed the positions."""
        chex.assert_shape(src_BS, (None, None, self.config.source_dim))
        check_length(src_BS.shape[1], self.config.longest_source)
        return constrain(self.source_proj(src_BS), "BSD")
