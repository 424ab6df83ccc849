"""The transformer block: one layer of a stack."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import LayerKind, StackConfig
from jaxllm.sharding import constrain

from .attention.attention import Attention
from .attention.cache import CrossCache, LayerCache, SourceKV
from .attention.cross_attention import CrossAttention
from .attention.distance_bias import DistanceBias
from .attention.latent import LatentAttention
from .context import Context
from .delta.layer import GatedDeltaNet
from .dropout import dropout, subkeys
from .experts.balance import Load
from .experts.moe import MoE
from .mlp import MLP
from .norm import Norm, saturate, split_stream


class Block(nnx.Module):
    """Transformer block: self-attention, optional cross-attention, and an MLP or experts.

    Each sublayer is a residual branch, with norms placed as the config says.
    """

    def __init__(self, config: StackConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        D = config.embed_dim
        self.norms, self.dropout = config.norms, config.dropout
        self.placement = config.norms.placement
        self.residual_scale = config.residual_scale
        self.numerics = config.numerics
        self.attn_norm = Norm("D", (D,), config)
        self.attn = _mixer(config, kind)(config, kind, rngs=rngs)
        has_own = self.placement != "parallel_shared"  # otherwise attention's serves for both
        self.mlp_norm = nnx.data(Norm("D", (D,), config) if has_own else None)
        self.mlp = (MoE if kind.mlp == "experts" else MLP)(config, rngs=rngs)
        knows_distance = config.positions.kind == "distance"
        self.attn_bias = nnx.data(DistanceBias(config, rngs=rngs) if knows_distance else None)
        is_sandwich = self.placement == "sandwich"
        self.attn_out_norm = nnx.data(Norm("D", (D,), config) if is_sandwich else None)
        self.mlp_out_norm = nnx.data(Norm("D", (D,), config) if is_sandwich else None)
        cross_attn = cross_norm = cross_out_norm = None
        if config.attention.cross:
            cross_attn, cross_norm = CrossAttention(config, rngs=rngs), Norm("D", (D,), config)
            cross_out_norm = Norm("D", (D,), config) if is_sandwich else None
        self.cross_attn, self.cross_norm = nnx.data(cross_attn), nnx.data(cross_norm)
        self.cross_out_norm = nnx.data(cross_out_norm)

    def __call__(
        self, x_BTD: Array, context: Context, cache: LayerCache | None = None
    ) -> tuple[Array, LayerCache | None, Load | None]:
        """Runs the layer.

        Args:
            x_BTD: the residual stream.
            context: segments, positions, source, bias and dropout key. A layer with
                cross-attention needs `context.source`, or a cache with the source's keys and
                values.
            cache: the layer's own.

        Returns:
            The residual stream after this layer, BTD, the layer's cache with these tokens added,
            and the load of its experts; None for what it does not have.
        """
        attn_key, cross_key, mlp_key = subkeys(context.dropout_key, 3)
        own, source = cache if isinstance(cache, CrossCache) else (cache, None)
        is_token_BT = _token_mask(x_BTD, context, is_cached=own is not None)
        if self.attn_bias is not None:
            context = context._replace(bias=self.attn_bias)
        h_BTD = self.pre_norm(self.attn_norm, x_BTD)
        attended_BTD, own = self.attn(h_BTD, context, own)
        cache = CrossCache(own, source) if own is not None and source is not None else own
        if self.placement in ("parallel", "parallel_shared"):
            h_BTD = h_BTD if self.mlp_norm is None else self.pre_norm(self.mlp_norm, x_BTD)
            out_BTD, load = self.feed_forward(h_BTD, is_token_BT)
            x_BTD = x_BTD + self.scaled(dropout(attended_BTD, self.dropout, attn_key))
            x_BTD = x_BTD + self.scaled(dropout(out_BTD, self.dropout, mlp_key))
            return split_stream(x_BTD, self.norms), cache, load
        assert self.mlp_norm is not None, "since it is not shared"
        x_BTD = self.add_residual(self.attn_norm, self.attn_out_norm, x_BTD, attended_BTD, attn_key)
        if self.cross_attn is not None:
            x_BTD = self.cross_attend(x_BTD, context, source, cross_key)
        out_BTD, load = self.feed_forward(self.pre_norm(self.mlp_norm, x_BTD), is_token_BT)
        x_BTD = self.add_residual(self.mlp_norm, self.mlp_out_norm, x_BTD, out_BTD, mlp_key)
        return x_BTD, cache, load

    def cross_attend(
        self, x_BTD: Array, context: Context, source: SourceKV | None, key: Array | None
    ) -> Array:
        """Adds cross-attention to the residual stream, BTD.

        `source` holds the cached keys and values; if it is None, they are computed.
        """
        attn, norm = self.cross_attn, self.cross_norm
        assert attn is not None, "checked by the caller"
        assert norm is not None, "every layer with cross-attention has this norm"
        if source is None:
            assert context.source is not None, "checked by the stack"
            source = attn.project_source(context.source)
        attended_BTD = attn(self.pre_norm(norm, x_BTD), source, context.segment_ids_BT)
        return self.add_residual(norm, self.cross_out_norm, x_BTD, attended_BTD, key)

    def feed_forward(self, x_BTD: Array, is_token_BT: Array | None) -> tuple[Array, Load | None]:
        """Applies the MLP or the experts; returns the output, BTD, and the load of the experts."""
        if isinstance(self.mlp, MoE):
            return self.mlp(x_BTD, is_token_BT)
        return self.mlp(x_BTD), None

    def pre_norm(self, norm: Norm, x_BTD: Array) -> Array:
        """Returns a sublayer's input: the residual stream, normalized unless norms follow it."""
        x_BTD = x_BTD if self.placement in ("post", "output") else norm(x_BTD)
        x_BTD = saturate(x_BTD, self.numerics.dtype) if self.numerics.wide_residual else x_BTD
        return constrain(x_BTD, "BTD") if self.norms.sequence_parallel else x_BTD

    def add_residual(
        self, norm: Norm, out_norm: Norm | None, x_BTD: Array, out_BTD: Array, key: Array | None
    ) -> Array:
        """Adds a sublayer's output to the residual stream, with its norms, and dropout by `key`."""
        if self.placement == "output":
            out_BTD = norm(out_BTD)
        if out_norm is not None:
            out_BTD = out_norm(out_BTD)
        x_BTD = x_BTD + self.scaled(dropout(out_BTD, self.dropout, key))
        if self.placement == "post":
            x_BTD = norm(split_stream(x_BTD, self.norms))
        return split_stream(x_BTD, self.norms)

    def scaled(self, out_BTD: Array) -> Array:
        """Returns a sublayer's output times the factor of outputs, in its dtype."""
        return out_BTD if self.residual_scale == 1.0 else out_BTD * self.residual_scale


def _mixer(
    config: StackConfig, kind: LayerKind
) -> type[Attention | LatentAttention | GatedDeltaNet]:
    """Returns the class of what mixes the tokens of a layer."""
    if kind.attention == "delta":
        return GatedDeltaNet
    return Attention if config.attention.latent is None else LatentAttention


def _token_mask(x_BTD: Array, context: Context, *, is_cached: bool) -> Array | None:
    """Returns a mask of the tokens that are not padding, BT; None if there is no padding."""
    if is_cached:  # with a cache, padding is at position -1
        positions_BT = context.resolve_positions(x_BTD.shape[1])
        return jnp.broadcast_to(positions_BT >= 0, x_BTD.shape[:2])
    return None if context.segment_ids_BT is None else context.segment_ids_BT != 0
