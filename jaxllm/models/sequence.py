"""Models over continuous inputs: a vector in for each token, one out for each or for all."""

from functools import partial

import chex
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import SequenceConfig
from jaxllm.layers.attention.cache import Caches
from jaxllm.layers.context import Context, Source
from jaxllm.layers.linear import Linear
from jaxllm.sharding import constrain

from .output import Output
from .stack import Stack, check_length


class SequenceModel(Stack):
    """Vectors to vectors: project, a stack of layers, project; pooled, to one for a sequence."""

    config: SequenceConfig

    def __init__(self, config: SequenceConfig, *, rngs: nnx.Rngs):
        D, linear = config.embed_dim, partial(Linear, config=config, use_bias=True, rngs=rngs)
        self.origin: Origin | None = None  # set by whoever fills in the weights
        self.input_proj = linear("BTI,ID->BTD", (config.input_dim, D))
        super().__init__(config, rngs=rngs)
        self.output_proj = linear("BTD,DO->BTO", (D, config.output_dim))

    def __call__(
        self,
        x_BTI: Array,
        *,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        cache: Caches | None = None,
        dropout_key: Array | None = None,
    ) -> Output:
        """What becomes of each token, BTO, or of each sequence, BO.

        Args:
            x_BTI: the tokens.
            segment_ids: BT; tokens attend within equal ids only. 0 is padding, which is no part
                of a mean either. Not for use with a cache.
            positions: BT, for sinusoids and the like and for the cache. Default: 0, 1, 2, ...
            cache: of `init_cache`, or as the last call returned it.
            dropout_key: of `jax.random.key`, another for each step of training. By default
                nothing is dropped out.
        """
        context = Context(segment_ids, positions, dropout_key=dropout_key)
        x_BTD, cache, loss = self.hidden(x_BTI, context, cache)
        if self.config.pooled:
            mean_BD = mean_of_tokens(x_BTD, segment_ids)
            mean_BD = mean_of_tokens(x_BTD, segment_ids)
            return Output(self.unembed(mean_BD[:, None])[:, 0], cache, loss)
        return Output(self.unembed(x_BTD), cache, loss)

    def hidden(
        self, x_BTI: Array, context: Context, cache: Caches | None = None
    ) -> tuple[Array, Caches | None, Array]:
        """The last hidden state, BTD, the cache and the auxiliary loss."""
        chex.assert_shape(x_BTI, (None, None, self.config.input_dim))
        return self.transform(constrain(self.input_proj(x_BTI), "BTD"), context, cache)

    def unembed(self, x_BTD: Array) -> Array:
        """What a hidden state says, BTO, in float32."""
        return self.output_proj.accumulate(x_BTD)

    def generate_next_token(self, x_BTI: Array, *, segment_ids: Array | None = None) -> Array:
        """What becomes of the last token of each row, (B, 1, O): the next, if trained to be.

        Raises ValueError if sequences are pooled.
        """
        if self.config.pooled:
            raise ValueError(f"pooled={self.config.pooled}: no token has an output of its own")
        T = x_BTI.shape[1]
        x_BTD, _, _ = self.hidden(x_BTI, Context(segment_ids))
        if segment_ids is None:
            return self.unembed(x_BTD[:, -1:])
        last_B = jnp.max(jnp.where(jnp.asarray(segment_ids) != 0, jnp.arange(T), 0), axis=1)
        return self.unembed(jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1))

    def init_cache(self, batch_size: int, length: int, source: Source | None = None) -> Caches:
        """An empty cache for each layer, as `Stack.init_cache`.

        Raises ValueError if sequences are pooled, or longer than the positions go.
        """
        if self.config.pooled:
            raise ValueError(f"pooled={self.config.pooled}: a mean is over a whole sequence")
        check_length(length, self.config.longest)
        return super().init_cache(batch_size, length, source)


def mean_of_tokens(x_BTD: Array, segment_ids_BT: Array | None) -> Array:
    """The mean over each row's tokens without padding, BD, in float32."""
    x_BTD = x_BTD.astype(jnp.float32)
    if segment_ids_BT is None:
        return x_BTD.mean(axis=1)
    is_token_BT1 = (jnp.asarray(segment_ids_BT) != 0)[..., None]
    total_BD = jnp.where(is_token_BT1, x_BTD, 0).sum(axis=1)
    return total_BD / jnp.maximum(is_token_BT1.sum(axis=1), 1)
