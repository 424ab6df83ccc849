"""Decoder-only language model, the architecture of Llama."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig
from jaxllm.layers.block import apply_layers, make_layers, stack, unstack
from jaxllm.layers.cache import Caches, KVCache
from jaxllm.layers.linear import Embedding, Linear
from jaxllm.layers.norm import RMSNorm
from jaxllm.origin import Origin
from jaxllm.sharding import constrain


class Output(NamedTuple):
    """What a model computes from tokens."""

    logits: Array  # BTV, float32
    cache: Caches | None
    aux_loss: Array  # scalar, to be added to the training loss


class Decoder(nnx.Module):
    """Tokens to logits: embed, `num_layers` blocks, norm, project to the vocabulary."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        D, V = config.embed_dim, config.vocab_size
        self.config = config
        self.origin: Origin | None = None  # set by whoever fills in the weights
        self.embed = Embedding(config, rngs=rngs)
        self.layers = make_layers(config, rngs=rngs)
        self.final_norm = RMSNorm(config)
        head = partial(Linear, "BTD,DV->BTV", (D, V), config=config, rngs=rngs)
        self.lm_head = nnx.data(None if config.tie_embeddings else head())

    def __call__(
        self,
        tokens_BT: Array,
        *,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        cache: Caches | None = None,
    ) -> Output:
        """The logits that predict each token's successor.

        Args:
            tokens_BT: token ids.
            segment_ids: BT; tokens attend within equal ids only. 0 is padding, and packed
                documents have an id each. Not for use with a cache.
            positions: BT, for RoPE and for the cache's slots. Default: 0, 1, 2, ...
            cache: of `init_cache`, or as the last call returned it.
        """
        x_BTD, cache = self.hidden(
            tokens_BT, segment_ids=segment_ids, positions=positions, cache=cache
        )
        return Output(self.unembed(x_BTD), cache, jnp.zeros((), jnp.float32))

    def hidden(
        self,
        tokens_BT: Array,
        *,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        cache: Caches | None = None,
    ) -> tuple[Array, Caches | None]:
        """The normalised last hidden state, BTD, and the cache. Arguments as for `__call__`."""
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids with a cache: pad on the right, give positions")
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        x_BTD = constrain(self.embed(tokens_BT), "BTD")
        x_BTD, cache = apply_layers(
            self.layers,
            lambda block, x, layer_cache: block(x, positions, segment_ids, layer_cache),
            x_BTD,
            cache,
            self.config.remat,
        )
        return self.final_norm(x_BTD), cache

    def unembed(self, x_BTD: Array) -> Array:
        """The logits of a hidden state, BTV, in float32."""
        head = self.embed.attend if self.lm_head is None else self.lm_head.accumulate
        return constrain(head(x_BTD), "BTV")

    def init_cache(self, batch_size: int, length: int) -> Caches:
        """An empty cache of `length` slots, stacked or listed as the layers are."""
        empty = KVCache.empty(self.config, batch_size, length)
        num_layers = self.config.num_layers
        if not self.config.scan_layers:
            return (empty,) * num_layers
        return KVCache(*(jnp.broadcast_to(x, (num_layers, *x.shape)) for x in empty))


def with_scanned_layers(model: Decoder, scan: bool) -> Decoder:
    """The same model, same weights, with its layers stacked for a scan or one by one."""
    layers = stack(model.layers) if scan else unstack(model.layers)
    if layers is model.layers:
        return model
    changed = nnx.merge(*nnx.split(model))
    changed.config = dataclasses.replace(model.config, scan_layers=scan)
    changed.layers = layers
    return changed
