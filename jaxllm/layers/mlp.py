"""The feed-forward half of a block."""

from functools import partial

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
        linear = partial(Linear, config=config, use_bias=config.mlp_bias, rngs=rngs)
        self.gate_proj = linear("BTD,DF->BTF", (D, F))
        self.up_proj = linear("BTD,DF->BTF", (D, F))
        self.down_proj = linear("BTF,FD->BTD", (F, D))

    def __call__(self, x_BTD: Array) -> Array:
        """Each position transformed on its own, BTD."""
        gate_BTF = constrain(self.gate_proj(x_BTD), "BTF")
        up_BTF = constrain(self.up_proj(x_BTD), "BTF")
        return self.down_proj(jax.nn.silu(gate_BTF) * up_BTF)
