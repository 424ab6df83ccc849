"""RMS norm and layer norm."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import Dtype, NormConfig, NormKind, StackConfig
from jaxllm.sharding import SEQUENCE_PARALLEL, constrain


class Norm(nnx.Module):
    """The norm that the config names, over the last dimensions of an array.

    `rms` (Zhang and Sennrich, 2019) normalizes in float32, casts, then scales, as Llama does.
    `rms_float32` scales before it casts. `rms_plus_one` also scales before it casts, by one plus
    its parameter (Gemma). `layer` (Ba et al., 2016) also centers and adds a bias;
    `layer_unbiased` adds none, and `layer_bare` does not scale either.

    Args:
        dims: letters of the parameters' dimensions.
        shape: their sizes.
        config: the kind of norm, its eps and dtypes.
        eps: overrides `config.norms.eps`.
        kind: overrides `config.norms.kind`.
        num_axes: how many of the last dimensions are normalized together; None: those of `dims`.
    """

    def __init__(
        self,
        dims: str,
        shape: tuple[int, ...],
        config: StackConfig,
        eps: float | None = None,
        kind: NormKind | None = None,
        num_axes: int | None = None,
    ):
        self.kind = config.norms.kind if kind is None else kind
        self.eps = config.norms.eps if eps is None else eps
        self.axes = tuple(range(-(len(dims) if num_axes is None else num_axes), 0))
        start = jnp.zeros if self.kind == "rms_plus_one" else jnp.ones
        scale = nnx.Param(start(shape, config.numerics.param_dtype), dims=dims)
        self.scale = nnx.data(None if self.kind == "layer_bare" else scale)
        bias = nnx.Param(jnp.zeros(shape, config.numerics.param_dtype), dims=dims)
        self.bias = nnx.data(bias if self.kind == "layer" else None)

    def __call__(self, x: Array) -> Array:
        """Normalizes `x`; keeps its shape and dtype."""
        h = x.astype(jnp.float32)
        if self.kind in ("layer", "layer_unbiased", "layer_bare"):
            h = normalize(h - jnp.mean(h, self.axes, keepdims=True), self.eps, self.axes)
            h = h if self.scale is None else h * self.scale[...]
            return (h if self.bias is None else h + self.bias[...]).astype(x.dtype)
        assert self.scale is not None, "only layer norms may have none"
        h, scale = normalize(h, self.eps, self.axes), self.scale[...]
        if self.kind == "rms":
            return _scale(h.astype(x.dtype), scale)
        offset = 1.0 if self.kind == "rms_plus_one" else 0.0
        return (h * (offset + scale.astype(jnp.float32))).astype(x.dtype)


def make_qk_norm(config: StackConfig, dims: str, shape: tuple[int, int]) -> Norm | None:
    """Returns the norm of queries or keys before RoPE, of heads and their width; None without."""
    match config.attention.qk_norm:
        case "head":
            return Norm(dims[1:], shape[1:], config)
        case "full":
            return Norm(dims, shape, config)
        case "each_head":
            return Norm(dims, shape, config, kind="layer_unbiased", num_axes=1)
    return None


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


def split_stream(x_BTD: Array, norms: NormConfig) -> Array:
    """Constrains the residual stream, whose tokens `tensor` splits too if the config says so.

    What tensor parallelism sums is then scattered to tokens, and gathered after the next norm.
    """
    return constrain(x_BTD, "BTD", SEQUENCE_PARALLEL if norms.sequence_parallel else {})


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
