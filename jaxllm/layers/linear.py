"""Dense projections, written as einsums so that the equation states every shape."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxllm.config import StackConfig
from jaxllm.sharding import constrain

PROJECTION = "projection"  # the name by which rematerialisation keeps what a Linear computed


class Linear(nnx.Module):
    """`einsum(equation, x, kernel) + bias`, as in `Linear("BTD,DNH->BTNH", (D, N, H), ...)`."""

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        *,
        config: StackConfig,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        _, dims, output = equation.replace("->", ",").split(",")
        kernel = init_kernel(equation, shape, config, rngs)
        sizes = {dim: size for dim, size in zip(dims, shape, strict=True) if dim in output}
        bias = jnp.zeros([*sizes.values()], config.numerics.param_dtype)
        self.equation = equation
        self.dtype = config.numerics.dtype
        self.kernel = nnx.Param(kernel, dims=dims)
        self.bias = nnx.data(nnx.Param(bias, dims="".join(sizes)) if use_bias else None)

    def __call__(self, x: Array) -> Array:
        """The projection, in the config's activation dtype."""
        return checkpoint_name(self.accumulate(x).astype(self.dtype), PROJECTION)

    def accumulate(self, x: Array) -> Array:
        """The projection in float32, as it comes out of the matrix unit: for logits."""
        y = project(self.equation, x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


def init_kernel(
    equation: str, shape: tuple[int, ...], config: StackConfig, rngs: nnx.Rngs
) -> Array:
    """A new kernel, as `config.init` says.

    Its fans are the sizes of the dimensions that the equation sums over, and of those it adds; a
    dimension of x, of the kernel and of the output counts kernels, as that of experts does.
    """
    if config.init.kind == "normal":
        return config.init.std * rngs.params.normal(shape, config.numerics.param_dtype)
    x_dims, dims, output = equation.replace("->", ",").split(",")
    fans = {True: 1, False: 1}
    for dim, size in zip(dims, shape, strict=True):
        if not (dim in x_dims and dim in output):
            fans[dim in output] *= size
    bound = math.sqrt(6 / sum(fans.values()))
    return rngs.params.uniform(shape, config.numerics.param_dtype, -bound, bound)


class Embedding(nnx.Module):
    """A vector for each token; `attend` is its transpose, for models that tie their head.

    Vectors are scaled as the config says; `attend` knows no scale.
    """

    def __init__(self, vocab_size: int, config: StackConfig, *, rngs: nnx.Rngs):
        shape = (vocab_size, config.embed_dim)
        table = config.init.std * rngs.params.normal(shape, config.numerics.param_dtype)
        self.dtype, self.scale = config.numerics.dtype, config.embed_scale
        self.embedding = nnx.Param(table, dims="VD")

    def __call__(self, tokens_BT: Array) -> Array:
        """The vectors of `tokens`, BTD. Raises AssertionError unless they are integers, BT."""
        chex.assert_rank(tokens_BT, 2)
        chex.assert_type(tokens_BT, int)
        # A lookup in a table split over D reshards the whole table: gather its width first.
        table_VD = constrain(self.embedding[...], "V.")
        x_BTD = table_VD[tokens_BT].astype(self.dtype)
        return x_BTD if self.scale == 1.0 else x_BTD * jnp.asarray(self.scale, self.dtype)

    def attend(self, x_BTD: Array) -> Array:
        """The logits of a tied head, BTV, in float32."""
        return project("BTD,VD->BTV", x_BTD, self.embedding[...])


class PositionTable(nnx.Module):
    """A learned vector for each position up to `max_len`."""

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        self.offset = config.positions.offset
        shape = (self.offset + config.max_len, config.embed_dim)
        table = config.init.std * rngs.params.normal(shape, config.numerics.param_dtype)
        self.dtype = config.numerics.dtype
        self.embedding = nnx.Param(table, dims=".D")

    def __call__(self, positions_BT: Array) -> Array:
        """The vectors of the positions, BTD; NaN past the last, which no training has seen."""
        table, rows_BT = constrain(self.embedding[...], ".."), positions_BT + self.offset
        return table.at[rows_BT].get(mode="fill", fill_value=jnp.nan).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project(equation: str, x: Array, kernel: Array) -> Array:
    """`einsum(equation, x, kernel)` in the dtype of `x`, accumulated and returned in float32.

    The kernel's gradient comes in the kernel's own dtype, not rounded to that of `x` before. Its
    product is ordered for speed: the fast path of XLA's CPU backend wants the contracted
    dimensions last in memory, and without a barrier it would fold the transposition back in.
    """
    return jnp.einsum(equation, x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


def _project_forward(equation: str, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return project(equation, x, kernel), (x, kernel)


def _project_backward(equation: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    x_dims, kernel_dims, y_dims = re.split(",|->", equation)
    dy = dy.astype(x.dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dx = einsum(f"{y_dims},{kernel_dims}->{x_dims}", dy, kernel.astype(x.dtype))
    flipped = "".join(sorted(x_dims, key=y_dims.__contains__))  # B and T, summed here, last
    x_flipped = jnp.einsum(f"{x_dims}->{flipped}", x)
    x_flipped = jax.lax.platform_dependent(
        x_flipped, cpu=jax.lax.optimization_barrier, default=lambda same: same
    )
    dkernel = einsum(f"{flipped},{y_dims}->{kernel_dims}", x_flipped, dy)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)
