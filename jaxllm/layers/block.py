"""One transformer layer."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import LayerKind, StackConfig
from jaxllm.sharding import constrain

from .attention.attention import Attention, Bias
from .attention.cache import Cache
from .attention.cross_attention import CrossAttention, CrossCache, Memory, Source
from .attention.distance_bias import DistanceBias
from .dropout import drop, subkeys
from .experts.moe import Load, MoE
from .mlp import MLP
from .norm import Norm


class Block(nnx.Module):
    """Attention, to a source as well perhaps, and an MLP or experts.

    Each is on a residual branch with the config's norms.
    """

    def __init__(self, config: StackConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        D = config.embed_dim
        self.placement, self.dropout = config.norms.placement, config.dropout
        self.attn_norm = Norm("D", (D,), config)
        self.attn = Attention(config, kind, rngs=rngs)
        self.mlp_norm = Norm("D", (D,), config)
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
        self,
        x_BTD: Array,
        positions_BT: Array,
        segment_ids_BT: Array | None = None,
        cache: Cache | CrossCache | None = None,
        bias: Bias | None = None,
        source: Source | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Cache | CrossCache | None, Load | None]:
        """The residual stream after this layer, BTD, the layer's cache and its experts' load.

        A layer with cross-attention needs a `source`, or a cache that remembers one. With a key,
        what sublayers return is dropped out.
        """
        attn_key, cross_key, mlp_key = subkeys(dropout_key, 3)
        bias = bias if self.attn_bias is None else self.attn_bias
        own, memory = cache if isinstance(cache, CrossCache) else (cache, None)
        is_token_BT = None if segment_ids_BT is None else segment_ids_BT != 0
        if own is not None:  # of which padding is at position -1
            is_token_BT = jnp.broadcast_to(positions_BT >= 0, x_BTD.shape[:2])
        h_BTD = self.enter(self.attn_norm, x_BTD)
        attended_BTD, own = self.attn(h_BTD, positions_BT, segment_ids_BT, own, bias)
        cache = CrossCache(own, memory) if own is not None and memory is not None else own
        if self.placement == "parallel":
            out_BTD, load = self.transform(self.enter(self.mlp_norm, x_BTD), is_token_BT)
            attended_BTD = drop(attended_BTD, self.dropout, attn_key)
            out_BTD = drop(out_BTD, self.dropout, mlp_key)
            return constrain(x_BTD + attended_BTD + out_BTD, "BTD"), cache, load
        x_BTD = self.leave(self.attn_norm, self.attn_out_norm, x_BTD, attended_BTD, attn_key)
        if self.cross_attn is not None:
            if memory is None:
                assert source is not None, "checked by the stack"
                memory = self.cross_attn.remember(source)
            x_BTD = self.gather(x_BTD, memory, segment_ids_BT, cross_key)
        out_BTD, load = self.transform(self.enter(self.mlp_norm, x_BTD), is_token_BT)
        x_BTD = self.leave(self.mlp_norm, self.mlp_out_norm, x_BTD, out_BTD, mlp_key)
        return x_BTD, cache, load

    def gather(
        self, x_BTD: Array, memory: Memory, segment_ids_BT: Array | None, key: Array | None
    ) -> Array:
        """The residual stream with what cross-attention finds in the source, BTD."""
        attn, norm = self.cross_attn, self.cross_norm
        assert attn is not None, "checked by the caller"
        assert norm is not None, "which every such layer has"
        gathered_BTD = attn(self.enter(norm, x_BTD), memory, segment_ids_BT)
        return self.leave(norm, self.cross_out_norm, x_BTD, gathered_BTD, key)

    def transform(self, x_BTD: Array, is_token_BT: Array | None) -> tuple[Array, Load | None]:
        """The MLP, or the experts and their load, BTD."""
        if isinstance(self.mlp, MoE):
            return self.mlp(x_BTD, is_token_BT)
        return self.mlp(x_BTD), None

    def enter(self, norm: Norm, x_BTD: Array) -> Array:
        """What a sublayer is given of the residual stream."""
        return x_BTD if self.placement in ("post", "output") else norm(x_BTD)

    def leave(
        self, norm: Norm, out_norm: Norm | None, x_BTD: Array, out_BTD: Array, key: Array | None
    ) -> Array:
        """The residual stream with what a sublayer returned; with a key, dropped out."""
        if self.placement == "output":
            out_BTD = norm(out_BTD)
        if out_norm is not None:
            out_BTD = out_norm(out_BTD)
        x_BTD = x_BTD + drop(out_BTD, self.dropout, key)
        return constrain(norm(x_BTD) if self.placement == "post" else x_BTD, "BTD")
