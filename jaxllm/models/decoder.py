"""Decoder-only language model."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.layers.block import Block
from jaxllm.layers.cache import Caches, KVCache
from jaxllm.layers.linear import Embedding, Linear, PositionTable
from jaxllm.layers.norm import Norm
from jaxllm.layers.stack import apply_layers, held, labels, make_layers, restack
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
        is_learned = config.positions == "learned"
        self.embed_position = nnx.data(PositionTable(config, rngs=rngs) if is_learned else None)

        def make(kind: LayerKind, key: Array) -> Block:
            return Block(config, kind, rngs=nnx.Rngs(params=key))

        self.layers = make_layers(make, config.kinds, config.scan_layers, rngs.params())
        self.final_norm = nnx.data(Norm("D", (D,), config) if config.final_norm else None)
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
        x_BTD, cache, aux_loss = self.hidden(
            tokens_BT, segment_ids=segment_ids, positions=positions, cache=cache
        )
        return Output(self.unembed(x_BTD), cache, aux_loss)

    def hidden(
        self,
        tokens_BT: Array,
        *,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        cache: Caches | None = None,
    ) -> tuple[Array, Caches | None, Array]:
        """The last hidden state, BTD, the cache, the auxiliary loss. Arguments of `__call__`."""
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids with a cache: pad on the right, give positions")
        if positions is None:
            positions = jnp.arange(tokens_BT.shape[1])[None]
        x_BTD = self.enter(tokens_BT, positions)
        x_BTD, cache, aux_loss = apply_layers(
            self.layers,
            lambda block, x, layer_cache: block(x, positions, segment_ids, layer_cache),
            x_BTD,
            cache,
            self.config.remat,
        )
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD), cache, aux_loss

    def enter(self, tokens_BT: Array, positions_BT: Array) -> Array:
        """What the first layer is given, BTD."""
        x_BTD = self.embed(tokens_BT)
        if self.config.embed_scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(self.config.embed_scale, x_BTD.dtype)
        if self.embed_position is not None:
            x_BTD = x_BTD + self.embed_position(positions_BT)
        return constrain(x_BTD, "BTD")

    def unembed(self, x_BTD: Array) -> Array:
        """The logits of a hidden state, BTV, in float32."""
        head = self.embed.attend if self.lm_head is None else self.lm_head.accumulate
        logits_BTV, cap = head(x_BTD), self.config.logit_softcap
        if cap is not None:
            logits_BTV = cap * jnp.tanh(logits_BTV / cap)
        return constrain(logits_BTV, "BTV")

    def init_cache(self, batch_size: int, length: int) -> Caches:
        """An empty cache of `length` slots for each layer, stacked as the layers are."""
        empty = KVCache.empty(self.config, batch_size, length)

        def of(count: int) -> KVCache:
            if count == 1:
                return empty
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), empty)

        return {label: of(len(held(label))) for label in labels(self.layers)}


def with_scanned_layers(model: Decoder, scan: bool) -> Decoder:
    """The same model, same weights, with its layers stacked for a scan or one by one."""
    layers = restack(model.layers, model.config.kinds, scan)
    if layers is model.layers:
        return model
    changed = nnx.merge(*nnx.split(model))
    changed.config = dataclasses.replace(model.config, scan_layers=scan)
    changed.layers = layers
    return changed
