"""The MLP (feed-forward network) of a block."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import Activation, MlpConfig, StackConfig
from jaxllm.sharding import constrain

from .linear import Linear
from .together import project_and_sum, project_together


class MLP(nnx.Module):
    """Computes `down(act(gate(x)) * up(x))`, as in SwiGLU (Shazeer, 2020).

    Without a gate, computes `down(act(up(x)))`. `mlp_dim` overrides that of the config.
    """

    def __init__(self, config: StackConfig, *, mlp_dim: int | None = None, rngs: nnx.Rngs):
        D, F = config.embed_dim, mlp_dim or config.mlp_dim
        linear = partial(Linear, config=config, use_bias=config.mlp.bias, rngs=rngs)
        self.config = config.mlp
        self.gate_proj = nnx.data(linear("BTD,DF->BTF", (D, F)) if config.mlp.gated else None)
        self.up_proj = linear("BTD,DF->BTF", (D, F))
        self.down_proj = linear("BTF,FD->BTD", (F, D), dtype=config.numerics.residual_dtype)

    def __call__(self, x_BTD: Array) -> Array:
        """Transforms each position independently, BTD."""
        if self.gate_proj is None:
            up_BTF = constrain(self.up_proj(x_BTD), "BTF")
            return project_and_sum(self.down_proj, activate(self.config.activation, up_BTF))
        gate_BTF, up_BTF = project_together((self.gate_proj, self.up_proj), x_BTD)
        gate_BTF, up_BTF = constrain(gate_BTF, "BTF"), constrain(up_BTF, "BTF")
        return project_and_sum(self.down_proj, gated(self.config, gate_BTF, up_BTF))


def gated(config: MlpConfig, gate: Array, up: Array) -> Array:
    """Returns `act(gate) * up`, clamped if the config says so: see `ClampConfig`."""
    clamp = config.clamp
    if clamp is None:
        return activate(config.activation, gate) * up
    gate = jnp.minimum(gate, clamp.limit)
    up = jnp.clip(up, -clamp.limit, clamp.limit)
    return gate * activate("sigmoid", clamp.alpha * gate) * (up + 1)


def activate(activation: Activation, x: Array) -> Array:
    """Applies an activation function elementwise; `gelu_tanh` approximates `gelu` by tanh."""
    if activation == "gelu":
        return jax.nn.gelu(x, approximate=False)
    if activation == "gelu_tanh":
        return jax.nn.gelu(x, approximate=True)
    others = {"silu": jax.nn.silu, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}
    return others[activation](x)
