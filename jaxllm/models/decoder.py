"""Decoder-only language model."""

import dataclasses
from functools import partial
from typing import Self

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import DecoderConfig
from jaxllm.layers.attention.cache import Caches
from jaxllm.layers.context import Context
from jaxllm.layers.linear import Embedding, Linear
from jaxllm.layers.stack import restack
from jaxllm.layers.vision import MaskedEmbedding, VisionEncoder, scatter_rows
from jaxllm.sharding import constrain

from .output import Output
from .stack import Stack


class Decoder(Stack):
    """Tokens to logits: embed, a stack of layers, project to the vocabulary."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        D, V = config.embed_dim, config.vocab_size
        self.origin: Origin | None = None  # set by whoever fills in the weights
        self.embed = Embedding(V, config, rngs=rngs)
        super().__init__(config, rngs=rngs)
        vision = image_proj = None
        if config.vision is not None:
            vision, F = VisionEncoder(config, rngs=rngs), config.vision.output_dim
            image_proj = Linear("BTF,FD->BTD", (F, D), config=config, rngs=rngs)
        self.vision, self.image_proj = nnx.data(vision), nnx.data(image_proj)
        head = partial(Linear, "BTD,DV->BTV", (D, V), config=config, rngs=rngs)
        self.lm_head = nnx.data(None if config.head.tied else head())
        bias = nnx.Param(jnp.zeros((V,), config.numerics.param_dtype), dims="V")
        self.head_bias = nnx.data(bias if config.head.bias else None)

    def __call__(
        self,
        tokens_BT: Array,
        *,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        cache: Caches | None = None,
        image_embedding: MaskedEmbedding | None = None,
        dropout_key: Array | None = None,
    ) -> Output:
        """The logits that predict each token's successor.

        Args:
            tokens_BT: token ids.
            segment_ids: BT; tokens attend within equal ids only. 0 is padding, and packed
                documents have an id each. Not for use with a cache.
            positions: BT, for RoPE and for the cache's slots. Default: 0, 1, 2, ...
            cache: of `init_cache`, or as the last call returned it.
            image_embedding: what stands in for some of the tokens, of `embed_images`.
            dropout_key: of `jax.random.key`, another for each step of training. By default
                nothing is dropped out.
        """
        context = Context(segment_ids, positions, dropout_key=dropout_key)
        x_BTD, cache, loss = self.hidden(tokens_BT, context, cache, image_embedding=image_embedding)
        return Output(self.unembed(x_BTD), cache, loss)

    def hidden(
        self,
        tokens_BT: Array,
        context: Context,
        cache: Caches | None = None,
        *,
        image_embedding: MaskedEmbedding | None = None,
    ) -> tuple[Array, Caches | None, Array]:
        """The last hidden state, BTD, the cache and the auxiliary loss."""
        return self.transform(self.embed_tokens(tokens_BT, image_embedding), context, cache)

    def embed_images(self, images_ICHW: Array, tokens_BT: Array) -> MaskedEmbedding:
        """Embeds images for the places that the tokens hold for them, in order, row after row.

        Raises ValueError if the model sees no images, or if they are more or fewer than the places.
        """
        vision = self.config.vision
        if self.vision is None or vision is None or vision.image_token is None:
            raise ValueError(f"vision={vision}: no token holds the place of an image")
        rows_ITF = self.vision(images_ICHW)
        mask_BT = jnp.equal(tokens_BT, vision.image_token)
        return scatter_rows(rows_ITF.reshape(-1, rows_ITF.shape[-1]), mask_BT)

    def embed_tokens(self, tokens_BT: Array, image: MaskedEmbedding | None = None) -> Array:
        """The tokens' embeddings, BTD, those of an image in their places."""
        x_BTD = self.embed(tokens_BT)
        if image is not None:
            if self.image_proj is None:
                raise ValueError("image_embedding for a model without vision")
            image_BTD = self.image_proj(image.embedding_BTF.astype(x_BTD.dtype))
            x_BTD = jnp.where(image.mask_BT[..., None], image_BTD, x_BTD)
        return x_BTD

    def unembed(self, x_BTD: Array) -> Array:
        """The logits of a hidden state, BTV, in float32."""
        head = self.embed.attend if self.lm_head is None else self.lm_head.accumulate
        logits_BTV, scale, cap = head(x_BTD), self.config.head.scale, self.config.head.softcap
        if scale != 1.0:
            logits_BTV = logits_BTV * scale
        if self.head_bias is not None:
            logits_BTV += self.head_bias[...].astype(jnp.float32)
        if cap is not None:
            logits_BTV = cap * jnp.tanh(logits_BTV / cap)
        return constrain(logits_BTV, "BTV")

    def restacked(self, scan: bool) -> Self:
        """The same model, same weights, with its layers stacked for a scan or one by one."""
        changed, vision = super().restacked(scan), self.vision
        if vision is None:
            return changed
        layers = restack(vision.layers, vision.kinds, scan)
        if layers is vision.layers:
            return changed
        changed = nnx.merge(*nnx.split(changed))
        changed.config = dataclasses.replace(self.config, scan_layers=scan)
        assert changed.vision is not None, "as above"
        changed.vision.layers = layers
        return changed
