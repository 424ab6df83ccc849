"""One transformer layer."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.layers.attention import Attention, Bias
from jaxllm.layers.cache import KVCache
from jaxllm.layers.mlp import MLP
from jaxllm.layers.moe import MoE
from jaxllm.layers.norm import Norm
from jaxllm.sharding import constrain


class Block(nnx.Module):
    """Attention and an MLP or experts, each on a residual branch with the config's norms."""

    def __init__(self, config: DecoderConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        D = config.embed_dim
        self.placement = config.norm_placement
        self.attn_norm = Norm("D", (D,), config)
        self.attn = Attention(config, kind, rngs=rngs)
        self.mlp_norm = Norm("D", (D,), config)
        self.mlp = (MoE if kind.mlp == "experts" else MLP)(config, rngs=rngs)
        is_sandwich = self.placement == "sandwich"
        self.attn_out_norm = nnx.data(Norm("D", (D,), config) if is_sandwich else None)
        self.mlp_out_norm = nnx.data(Norm("D", (D,), config) if is_sandwich else None)

    def __call__(
        self,
        x_BTD: Array,
        positions_BT: Array,
        segment_ids_BT: Array | None = None,
        cache: KVCache | None = None,
        bias: Bias | None = None,
    ) -> tuple[Array, KVCache | None, Array]:
        """The residual stream after this layer, BTD, the layer's cache and auxiliary loss."""
        h_BTD = self.enter(self.attn_norm, x_BTD)
        attended_BTD, cache = self.attn(h_BTD, positions_BT, segment_ids_BT, cache, bias)
        if self.placement == "parallel":
            out_BTD, aux_loss = self.transform(self.enter(self.mlp_norm, x_BTD))
            return constrain(x_BTD + attended_BTD + out_BTD, "BTD"), cache, aux_loss
        x_BTD = self.leave(self.attn_norm, self.attn_out_norm, x_BTD, attended_BTD)
        out_BTD, aux_loss = self.transform(self.enter(self.mlp_norm, x_BTD))
        return self.leave(self.mlp_norm, self.mlp_out_norm, x_BTD, out_BTD), cache, aux_loss

    def transform(self, x_BTD: Array) -> tuple[Array, Array]:
        """The MLP or the experts, BTD, and the auxiliary loss."""
        if isinstance(self.mlp, MoE):
            return self.mlp(x_BTD)
        return self.mlp(x_BTD), jnp.zeros((), jnp.float32)

    def enter(self, norm: Norm, x_BTD: Array) -> Array:
        """What a sublayer is given of the residual stream."""
        return x_BTD if self.placement in ("post", "output") else norm(x_BTD)

    def leave(self, norm: Norm, out_norm: Norm | None, x_BTD: Array, out_BTD: Array) -> Array:
        """The residual stream with what a sublayer returned."""
        if self.placement == "post":
            return constrain(norm(x_BTD + out_BTD), "BTD")
        if self.placement == "output":
            return constrain(x_BTD + norm(out_BTD), "BTD")
        if out_norm is not None:
            return constrain(x_BTD + out_norm(out_BTD), "BTD")
        return constrain(x_BTD + out_BTD, "BTD")
