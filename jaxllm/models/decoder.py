"""Decoder-only language model, optionally with images as input."""

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
from jaxllm.layers.experts.balance import Balance
from jaxllm.layers.linear import Embedding, Head, Linear
from jaxllm.layers.stack import restack
from jaxllm.layers.vision import MaskedEmbedding, VisionEncoder, scatter_rows
from jaxllm.sharding import constrain

from .output import Output
from .stack import Stack


class Decoder(Stack):
    """Maps tokens to logits: embedding, a stack of transformer blocks, and the output head.

    With `config.head.kind="none"` it returns the hidden states in place of logits.
    """

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        D, V = config.embed_dim, config.vocab_size
        self.origin: Origin | None = None  # set when weights are loaded
        self.embed = Embedding(V, config, rngs=rngs)
        super().__init__(config, rngs=rngs)
        vision = image_proj = None
        if config.vision is not None:
            vision, F = VisionEncoder(config, rngs=rngs), config.vision.output_dim
            image_proj = Linear("BTF,FD->BTD", (F, D), config=config, rngs=rngs)
        self.vision, self.image_proj = nnx.data(vision), nnx.data(image_proj)
        head = partial(Linear, "BTD,DV->BTV", (D, V), config=config, rngs=rngs)
        has_own = config.head.kind == "linear" and not config.head.tied
        self.lm_head = nnx.data(head() if has_own else None)
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
        """Computes next-token logits.

        Args:
            tokens_BT: token ids.
            segment_ids: BT; tokens attend only to tokens with the same id. 0 is padding; give each
                packed document its own id. Cannot be combined with a cache.
            positions: BT, for RoPE and for the slots of the cache. Default: 0, 1, 2, ...
            cache: from `init_cache` or the previous call.
            image_embedding: from `embed_images`; replaces the embeddings of image tokens.
            dropout_key: a `jax.random.key`, a new one for each training step. Default: no dropout.

        Returns:
            Output with logits BTV that predict the token after each position; without a head, the
            hidden states BTD of each position.
        """
        context = Context(segment_ids, positions, dropout_key=dropout_key)
        hidden = self.hidden(tokens_BT, context, cache, image_embedding=image_embedding)
        x_BTD, cache, balance = hidden
        return Output(self.unembed(x_BTD), cache, balance.aux_loss)

    def hidden(
        self,
        tokens_BT: Array,
        context: Context = Context(),
        cache: Caches | None = None,
        *,
        image_embedding: MaskedEmbedding | None = None,
    ) -> tuple[Array, Caches | None, Balance]:
        """Returns the last layer's hidden states, BTD, the cache and the balance of experts."""
        return self.transform(self.embed_tokens(tokens_BT, image_embedding), context, cache)

    def embed_images(self, images_ICHW: Array, tokens_BT: Array) -> MaskedEmbedding:
        """Embeds images into the positions of image tokens, in order, row by row.

        Args:
            images_ICHW: I images in all, of C channels and H by W pixels.
            tokens_BT: token ids, with one `config.vision.image_token` per image embedding.

        Raises:
            ValueError: the model has no image encoder or no image token, or the number of image
                embeddings differs from the number of image tokens.
        """
        vision = self.config.vision
        if self.vision is None or vision is None or vision.image_token is None:
            raise ValueError(
                f"vision={vision}: images need a model with an image encoder and an image_token"
            )
        rows_ITF = self.vision(images_ICHW)
        mask_BT = jnp.equal(tokens_BT, vision.image_token)
        return scatter_rows(rows_ITF.reshape(-1, rows_ITF.shape[-1]), mask_BT)

    def embed_tokens(self, tokens_BT: Array, image: MaskedEmbedding | None = None) -> Array:
        """Embeds tokens, BTD, with image embeddings in place of the image tokens'."""
        x_BTD = self.embed(tokens_BT)
        if image is not None:
            if self.image_proj is None:
                raise ValueError("image_embedding is given, but the model was built without vision")
            image_BTD = self.image_proj(image.embedding_BTF.astype(x_BTD.dtype))
            x_BTD = jnp.where(image.mask_BT[..., None], image_BTD, x_BTD)
        return x_BTD

    def unembed(self, x_BTD: Array) -> Array:
        """Maps hidden states to logits, BTV, in float32; without a head, returns them as BTD."""
        if self.config.head.kind == "none":
            return constrain(x_BTD.astype(jnp.float32), "BTD")
        products = self.embed.attend if self.lm_head is None else self.lm_head.accumulate
        head = self.head()
        return constrain(head.transform(products(x_BTD), head.bias_V), "BTV")

    def head(self) -> Head:
        """Returns the arrays and numbers of the output head."""
        kernel = self.embed.embedding if self.lm_head is None else self.lm_head.kernel
        return Head(
            kernel=kernel[...],
            bias_V=None if self.head_bias is None else self.head_bias[...],
            dims="VD" if self.lm_head is None else "DV",
            scale=self.config.head.scale,
            softcap=self.config.head.softcap,
            reduce_dtype=self.config.numerics.reduce_dtype,
        )

    def restacked(self, scan: bool) -> Self:
        """Returns the same model and weights, with layers stacked for a scan or kept one by one."""
        changed, vision = super().restacked(scan), self.vision
        if vision is None:
            return changed
        layers = restack(vision.layers, vision.kinds, scan)
        if layers is vision.layers:
            return changed
        changed = nnx.merge(*nnx.split(changed))
        changed.config = dataclasses.replace(self.config, scan_layers=scan)
        assert changed.vision is not None, "a copy of a model with vision"
        changed.vision.layers = layers
        return changed
