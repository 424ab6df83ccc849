"""The feed-forward half of a block."""

import jax
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig
from jaxllm.layers.linear import Linear
from jaxllm.sharding import constrain


class MLP(nnx.Module):
    """SwiGLU (Shazeer, 2020): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        D, F = config.embed_dim, config.mlp_dim
        options = {"use_bias": config.mlp_bias, "rngs": rngs}
        self.gate_proj = Linear("BTD,DF->BTF", (D, F), config, **options)
        self.up_proj = Linear("BTD,DF->BTF", (D, F), config, **options)
        self.down_proj = Linear("BTF,FD->BTD", (F, D), config, **options)

    def __call__(self, x_BTD: Array) -> Array:
        """Each position transformed on its own, BTD."""
        gate_BTF = constrain(self.gate_proj(x_BTD), "BTF")
        up_BTF = constrain(self.up_proj(x_BTD), "BTF")
        return self.down_proj(jax.nn.silu(gate_BTF) * up_BTF)
