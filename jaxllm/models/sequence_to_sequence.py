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
    """Vectors of a source and of a target to vectors."""

    config: SequenceToSequenceConfig
    decoder: SequenceModel

    def __init__(self, config: SequenceToSequenceConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.origin: Origin | None = None  # set by whoever fills in the weights
        shape = (config.source_dim, config.encoder.embed_dim)
        self.source_proj = Linear(
            "BSI,ID->BSD", shape, config=config.encoder, use_bias=True, rngs=rngs
        )
        self.encoder = Stack(config.encoder, rngs=rngs)
        self.decoder = SequenceModel(config.decoder, rngs=rngs)

    def embed_source(self, src_BS: Array) -> Array:
        """The projections of a source, BSD. Raises ValueError if it is too long."""
        chex.assert_shape(src_BS, (None, None, self.config.source_dim))
        check_length(src_BS.shape[1], self.config.longest_source)
        return constrain(self.source_proj(src_BS), "BSD")
