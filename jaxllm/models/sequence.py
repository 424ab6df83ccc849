"""Models over continuous inputs: vectors in, and one vector out per token or per sequence."""

from functools import partial

import chex
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import SequenceConfig
from jaxllm.layers.attention.cache import CacheDtype, Caches
from jaxllm.layers.context import Context, Source
from jaxllm.layers.experts.balance import Balance
from jaxllm.layers.linear import Linear
from jaxllm.sharding import constrain

from .output import Output
from .stack import Stack, check_length


class SequenceModel(Stack):
    """Maps vectors to vectors: input projection, a stack of transformer blocks, output projection.

    With `config.pooled`, the output is one vector per sequence, from the mean of its tokens.
    """

    config: SequenceConfig

    def __init__(self, config: SequenceConfig, *, rngs: nnx.Rngs):
        D, linear = config.embed_dim, partial(Linear, config=config, use_bias=True, rngs=rngs)
        self.origin: Origin | None = None  # set when weights are loaded
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
        """Computes an output for each token, or for each sequence if pooled.

        Args:
            x_BTI: the tokens' vectors.
            segment_ids: BT; tokens attend only to tokens with the same id. 0 is padding, which the
                mean of a pooled model leaves out too. Cannot be combined with a cache.
            positions: BT, for position embeddings and biases, RoPE and the slots of the cache.
                Default: 0, 1, 2, ...
            cache: from `init_cache` or the previous call.
            dropout_key: a `jax.random.key`, a new one for each training step. Default: no dropout.

        Returns:
            Output whose `logits` are BTO or, if pooled, BO.
        """
        context = Context(segment_ids, positions, dropout_key=dropout_key)
        x_BTD, cache, balance = self.hidden(x_BTI, context, cache)
        return Output(self.outputs(x_BTD, segment_ids), cache, balance.aux_loss)

    def hidden(
        self, x_BTI: Array, context: Context = Context(), cache: Caches | None = None
    ) -> tuple[Array, Caches | None, Balance]:
        """Returns the last layer's hidden states, BTD, the cache and the balance of experts."""
        chex.assert_shape(x_BTI, (None, None, self.config.input_dim))
        return self.transform(constrain(self.input_proj(x_BTI), "BTD"), context, cache)

    def unembed(self, x_BTD: Array) -> Array:
        """Maps hidden states to outputs, BTO, in float32."""
        return self.output_proj.accumulate(x_BTD)

    def outputs(self, x_BTD: Array, segment_ids: Array | None = None) -> Array:
        """Maps hidden states to the outputs of a call, BTO or, if pooled, BO."""
        if not self.config.pooled:
            return self.unembed(x_BTD)
        return self.unembed(mean_of_tokens(x_BTD, segment_ids)[:, None])[:, 0]

    def generate_next_token(self, x_BTI: Array, *, segment_ids: Array | None = None) -> Array:
        """Returns the output at the last token of each row, (B, 1, O).

        In a model trained on next-token prediction, this is the predicted next token.

        Args:
            x_BTI: the tokens' vectors.
            segment_ids: BT; 0 is padding. By default there is none.

        Raises:
            ValueError: the model is pooled.
        """
        if self.config.pooled:
            raise ValueError(
                "pooled=True: the model has one output per sequence, so it predicts no next token"
            )
        T = x_BTI.shape[1]
        x_BTD, _, _ = self.hidden(x_BTI, Context(segment_ids))
        if segment_ids is None:
            return self.unembed(x_BTD[:, -1:])
        last_B = jnp.max(jnp.where(jnp.asarray(segment_ids) != 0, jnp.arange(T), 0), axis=1)
        return self.unembed(jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1))

    def init_cache(
        self,
        batch_size: int,
        length: int,
        source: Source | None = None,
        dtype: CacheDtype | None = None,
        spare: int = 0,
    ) -> Caches:
        """Returns an empty cache for each layer; see `Stack.init_cache`.

        Raises ValueError if the model is pooled, or if it has fewer than `length` positions.
        """
        if self.config.pooled:
            raise ValueError(
                "pooled=True: the mean needs the whole sequence, so a cache has no use"
            )
        check_length(length, self.config.longest)
        return super().init_cache(batch_size, length, source, dtype, spare)


def mean_of_tokens(x_BTD: Array, segment_ids_BT: Array | None) -> Array:
    """Returns the mean of each row's tokens, BD, in float32; padding (segment 0) is left out."""
    x_BTD = x_BTD.astype(jnp.float32)
    if segment_ids_BT is None:
        return x_BTD.mean(axis=1)
    is_token_BT1 = (jnp.asarray(segment_ids_BT) != 0)[..., None]
    total_BD = jnp.where(is_token_BT1, x_BTD, 0).sum(axis=1)
    return total_BD / jnp.maximum(is_token_BT1.sum(axis=1), 1)
