"""RMS norm and layer norm."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import Dtype, StackConfig


class Norm(nnx.Module):
    """The norm that the config names, over the last dimensions of an array.

    `rms` (Zhang and Sennrich, 2019) normalizes in float32, casts, then scales, as Llama does.
    `rms_float32` scales before it casts. `rms_plus_one` also scales before it casts, by one plus
    its parameter (Gemma). `layer` (Ba et al., 2016) also centers and adds a bias.

    Args:
        dims: letters of the normalized dimensions.
        shape: their sizes.
        config: the kind of norm, its eps and dtypes.
        eps: overrides `config.norms.eps`.
    """

    def __init__(
        self, dims: str, shape: tuple[int, ...], config: StackConfig, eps: float | None = None
    ):
        self.kind = config.norms.kind
        self.eps = config.norms.eps if eps is None else eps
        start = jnp.zeros if self.kind == "rms_plus_one" else jnp.ones
        self.scale = nnx.Param(start(shape, config.numerics.param_dtype), dims=dims)
        bias = nnx.Param(jnp.zeros(shape, config.numerics.param_dtype), dims=dims)
        self.bias = nnx.data(bias if self.kind == "layer" else None)

    def __call__(self, x: Array) -> Array:
        """Normalizes `x`; keeps its shape and dtype."""
        scale, axes = self.scale[...], tuple(range(-self.scale.ndim, 0))
        h = x.astype(jnp.float32)
        if self.bias is not None:
            h = normalize(h - jnp.mean(h, axes, keepdims=True), self.eps, axes)
            return (h * scale + self.bias[...]).astype(x.dtype)
        h = normalize(h, self.eps, axes)
        if self.kind == "rms":
            return _scale(h.astype(x.dtype), scale)
        offset = 1.0 if self.kind == "rms_plus_one" else 0.0
        return (h * (offset + scale.astype(jnp.float32))).astype(x.dtype)


@jax.custom_vjp
def _scale(x: Array, scale: Array) -> Array:
    """Returns `x` times a scale that is rounded to its dtype; the scale's gradient is not."""
    return x * scale.astype(x.dtype)


def _scale_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, scale = saved
    each = dy.astype(jnp.float32) * x.astype(jnp.float32)
    total = jnp.sum(each, tuple(range(x.ndim - scale.ndim)))
    return dy * scale.astype(x.dtype), total.astype(scale.dtype)


_scale.defvjp(lambda x, scale: (_scale(x, scale), (x, scale)), _scale_backward)


def saturate(x: Array, dtype: Dtype) -> Array:
    """Casts `x`; numbers beyond the range of `dtype` become its largest and smallest."""
    if x.dtype == dtype:
        return x
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -limit, limit).astype(dtype)


def normalize(x: Array, eps: float, axes: tuple[int, ...] = (-1,)) -> Array:
    """Divides `x` by its root mean square over the axes, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + eps)
