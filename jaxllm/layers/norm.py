"""Normalisation of the residual stream."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019): normalise in float32, cast, then scale."""

    def __init__(self, config: DecoderConfig):
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(config.embed_dim, config.param_dtype), dims="D")

    def __call__(self, x_BTD: Array) -> Array:
        """`x / rms(x) * scale`, in the dtype of `x`."""
        h_BTD = x_BTD.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(jnp.square(h_BTD), axis=-1, keepdims=True) + self.eps)
        return (h_BTD * rms).astype(x_BTD.dtype) * self.scale[...].astype(x_BTD.dtype)
