"""The stack of transformer blocks that all encoders and decoders share."""

import dataclasses
import logging
from typing import Self

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import LayerKind, StackConfig
from jaxllm.errors import UserError
from jaxllm.layers.attention.cache import (
    CacheDtype,
    Caches,
    CrossCache,
    LayerCache,
    SourceKV,
    make_cache,
)
from jaxllm.layers.attention.distance_bias import make_bias
from jaxllm.layers.attention.sinusoids import sinusoids
from jaxllm.layers.block import Block
from jaxllm.layers.context import Context, Source
from jaxllm.layers.dropout import dropout, layer_keys, subkeys
from jaxllm.layers.experts.balance import Balance, Load, balance_of
from jaxllm.layers.linear import PositionTable
from jaxllm.layers.norm import Norm, saturate, split_stream
from jaxllm.layers.stack import (
    apply_layers,
    layer_depths,
    layer_labels,
    layer_range,
    make_layers,
    restack,
)
from jaxllm.sharding import constrain

log = logging.getLogger("jaxllm")


class Stack(nnx.Module):
    """Maps embeddings to hidden states: position embeddings, `num_layers` blocks, final norm."""

    config: StackConfig

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        norm = ("D", (config.embed_dim,), config)
        self.config = config
        is_learned = config.positions.kind == "learned"
        self.embed_position = nnx.data(PositionTable(config, rngs=rngs) if is_learned else None)
        self.embed_norm = nnx.data(Norm(*norm) if config.norms.embed else None)
        self.position_bias = nnx.data(make_bias(config, rngs=rngs))

        def make(kind: LayerKind, key: Array) -> Block:
            return Block(config, kind, rngs=nnx.Rngs(params=key))

        self.layers = make_layers(make, config.kinds, config.scan_layers, rngs.params())
        last = Norm(*norm, eps=config.norms.final_eps) if config.norms.final else None
        self.final_norm = nnx.data(last)

    def transform(
        self, x_BTD: Array, context: Context, cache: Caches | None = None
    ) -> tuple[Array, Caches | None, Balance]:
        """Runs embedded tokens through all layers.

        Args:
            x_BTD: token embeddings, without positions.
            context: segments, positions, the source of cross-attention, and the dropout key.
            cache: from `init_cache` or the previous call.

        Returns:
            The hidden states after the final norm, BTD, the cache with these tokens added (None if
            none was given), and the balance of its experts.

        Raises:
            ValueError: segments are given with a cache, cross-attention has no source, or there
                are more tokens than positions.
            AssertionError: segments or positions are not BT.
        """
        self._check(x_BTD, context, cache)
        positions_BT = context.resolve_positions(x_BTD.shape[1])
        rate = self.config.dropout
        first_key, key = subkeys(context.dropout_key if rate else None, 2)
        context = context._replace(positions_BT=positions_BT, bias=self.position_bias)

        def step(
            block: Block, x_BTD: Array, given: tuple[LayerCache | None, Array | None, Array | None]
        ) -> tuple[Array, LayerCache | None, Load | None]:
            own, own_key, depth = given
            return block(x_BTD, context._replace(dropout_key=own_key, depth=depth), own)

        x_BTD, written, loads = apply_layers(
            self.layers,
            step,
            dropout(self.embed_positions(x_BTD, positions_BT), rate, first_key),
            {
                label: (
                    None if cache is None else cache[label],
                    None if key is None else layer_keys(key, layer_range(label)),
                    layer_depths(label) if self.config.attention.scale_by_depth else None,
                )
                for label in layer_labels(self.layers)
            },
            self.config.remat,
            self.config.numerics.dtype,
        )
        x_BTD = x_BTD if self.final_norm is None else self.final_norm(x_BTD)
        if self.config.norms.sequence_parallel:
            x_BTD = constrain(x_BTD, "BTD")
        if self.config.numerics.wide_residual:
            x_BTD = saturate(x_BTD, self.config.numerics.dtype)
        balance = balance_of(self.config.experts, loads.values())
        return x_BTD, None if cache is None else written, balance

    def _check(self, x_BTD: Array, context: Context, cache: Caches | None) -> None:
        for array in (context.segment_ids_BT, context.positions_BT):
            if array is not None:
                chex.assert_rank(array, 2)
                chex.assert_is_broadcastable(array.shape, x_BTD.shape[:2])
        if cache is not None and context.segment_ids_BT is not None:
            raise ValueError(
                "segment_ids cannot be combined with a cache: pad rows on the right and give "
                "positions instead"
            )
        if self.config.attention.cross and context.source is None and cache is None:
            raise ValueError(
                "a stack with attention.cross=True needs a source, or a cache that holds one"
            )
        if context.positions_BT is None:
            check_positions(x_BTD.shape[1], self.config)
        elif not isinstance(context.positions_BT, jax.core.Tracer):
            check_positions(1 + int(jnp.max(context.positions_BT)), self.config)

    def embed_positions(self, x_BTD: Array, positions_BT: Array) -> Array:
        """Returns the first layer's input, BTD: adds position embeddings and applies their norm.

        Both are optional in the config.
        """
        if self.config.numerics.wide_residual:
            x_BTD = x_BTD.astype(self.config.numerics.residual_dtype)
        if self.embed_position is not None:
            x_BTD = x_BTD + self.embed_position(positions_BT)
        if self.config.positions.kind == "sinusoidal":
            numbers_BT = positions_BT + self.config.positions.offset
            waves_BTD = sinusoids(numbers_BT, x_BTD.shape[-1], self.config.positions.waves)
            x_BTD = x_BTD + waves_BTD.astype(x_BTD.dtype)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        return split_stream(x_BTD, self.config.norms)

    def init_cache(
        self,
        batch_size: int,
        length: int,
        source: Source | None = None,
        dtype: CacheDtype | None = None,
        spare: int = 0,
    ) -> Caches:
        """Returns an empty cache for each layer, stacked as the layers are.

        Layers with a window or chunks keep only as many tokens as they can see. With
        cross-attention, the cache also holds each layer's keys and values of the source.

        Args:
            batch_size: number of rows.
            length: number of tokens per row to make room for.
            source: the encoder's output, for a stack with cross-attention.
            dtype: of the keys and values of the tokens. Default: that of the activations.
            spare: how many of the last tokens may be taken back, by writing others in their place.

        Raises:
            ValueError: the stack is not causal, or needs a source and has none.
            UserError: its experts have a capacity, which counts the tokens of a whole call.
        """
        if self.config.experts is not None and self.config.experts.capacity is not None:
            raise UserError(
                f"experts.capacity={self.config.experts.capacity}: an expert takes so many tokens "
                "of one call, in order, so that rows would change each other, and one token after "
                "the other with a cache would give other numbers than the whole sequence; call the "
                "model with one whole sequence instead"
            )

        def init(label: str) -> LayerCache:
            kind, count = self.config.kinds[layer_range(label)[0]], len(layer_range(label))
            own = make_cache(self.config, kind, batch_size, length, dtype, spare)
            if count > 1:
                own = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), own)
            return CrossCache(own, self._project_source(label, source)) if is_cross else own

        is_cross = self.config.attention.cross
        return {label: init(label) for label in layer_labels(self.layers)}

    def _project_source(self, label: str, source: Source | None) -> SourceKV:
        """Computes the keys and values of a source for the layers under a label."""
        if source is None:
            raise ValueError("the cache of a stack with attention.cross=True needs a source")
        block = self.layers[label]
        if len(layer_range(label)) == 1:
            return block.cross_attn.project_source(source)
        return jax.vmap(lambda one: one.cross_attn.project_source(source))(block)

    def restacked(self, scan: bool) -> Self:
        """Returns the same stack and weights, with layers stacked for a scan or kept one by one."""
        layers = restack(self.layers, self.config.kinds, scan)
        if layers is self.layers:
            return self
        changed = nnx.merge(*nnx.split(self))
        changed.config = dataclasses.replace(self.config, scan_layers=scan)
        changed.layers = layers
        return changed


def check_length(length: int, longest: int | None) -> None:
    """Raises UserError if a sequence has more tokens than there are positions."""
    if longest is not None and length > longest:
        raise UserError(
            f"a sequence of {length} tokens is longer than max_len={longest}, where the model's "
            "positions end"
        )


def check_positions(length: int, config: StackConfig) -> None:
    """Checks the length of a sequence against the positions that a stack has.

    Warns once for each limit if a sequence is longer than those that RoPE was trained on. Raises
    UserError if there are no such positions at all.
    """
    check_length(length, config.longest)
    limit = config.longest_trained
    if limit is not None and length > limit and limit not in _warned:
        _warned.add(limit)
        log.warning(
            "a sequence of %d tokens is longer than max_len=%d, the longest that this model's RoPE "
            "was trained on: what it computes beyond may be of little use",
            length,
            limit,
        )


_warned: set[int] = set()  # limits that a warning has named
