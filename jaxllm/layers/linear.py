"""Linear projections written as einsums, whose equations state all shapes; embeddings and heads."""

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxllm.config import Dtype, MatmulDtype, ReduceDtype, StackConfig
from jaxllm.errors import UserError
from jaxllm.numerics.float8 import FORWARD, GRADIENT, float8_einsum
from jaxllm.sharding import constrain

from .adapters.low_rank import LowRank, summed_dims
from .gather import sum_in_stages
from .lookup import look_up

PROJECTION = "projection"  # checkpoint name of projection outputs, which remat="dots" saves
ATTENDED = "attended"  # of attention outputs and their log sums, which remat="attention" saves


class Linear(nnx.Module):
    """Computes `einsum(equation, x, kernel) + bias`.

    For example, `Linear("BTD,DNH->BTNH", (D, N, H), ...)` projects to query heads.

    Args:
        equation: an einsum of the input and the kernel, by dimension letters.
        shape: of the kernel.
        config: its initialization and dtypes.
        use_bias: whether to add a bias over the kernel's output dimensions.
        dtype: of the output; by default that of the activations.
        is_exact: whether it multiplies in the dtype of activations, whatever the config says.
        rngs: for the initial kernel.
    """

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        *,
        config: StackConfig,
        use_bias: bool = False,
        dtype: Dtype | None = None,
        is_exact: bool = False,
        rngs: nnx.Rngs,
    ):
        _, dims, output = equation.replace("->", ",").split(",")
        kernel = init_kernel(equation, shape, config, rngs)
        sizes = {dim: size for dim, size in zip(dims, shape, strict=True) if dim in output}
        bias = jnp.zeros([*sizes.values()], config.numerics.param_dtype)
        self.equation = equation
        self.dtype = dtype or config.numerics.dtype
        self.reduce_dtype = config.numerics.reduce_dtype
        self.matmul_dtype: MatmulDtype = "dtype" if is_exact else config.numerics.matmul_dtype
        self.kernel = nnx.Param(kernel, dims=dims, summed=summed_dims(equation))
        self.bias = nnx.data(nnx.Param(bias, dims="".join(sizes)) if use_bias else None)
        self.lora: LowRank | None = nnx.data(None)  # `jaxllm.lora.attach` adds it

    def __call__(self, x: Array) -> Array:
        """Returns the projection in the dtype of the output."""
        return self.finish(self.multiply(x, self.kernel[...]), x)

    def multiply(self, x: Array, kernel: Array) -> Array:
        """Returns the product of an input and a kernel, or of parts of both, in float32."""
        return project(self.equation, x, kernel, self.reduce_dtype, self.matmul_dtype)

    def finish(self, product: Array, x: Array) -> Array:
        """Returns the projection of `x` in the dtype of the output, given its product."""
        y = product.astype(jnp.float32)
        y = (y if self.bias is None else y + self.bias[...].astype(jnp.float32)).astype(self.dtype)
        if self.lora is not None:
            y = y + self.lora(x).astype(self.dtype)
        return checkpoint_name(y, PROJECTION)

    def accumulate(self, x: Array) -> Array:
        """Returns the projection in float32, not rounded to the dtype of the output: for logits."""
        y = project(self.equation, x, self.kernel[...], self.reduce_dtype)
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


def init_kernel(
    equation: str, shape: tuple[int, ...], config: StackConfig, rngs: nnx.Rngs
) -> Array:
    """Draws a kernel as `config.init` says.

    Fan-in is the product of the kernel dimensions that the equation sums over, fan-out that of
    the kernel dimensions that only the kernel brings into the output. A dimension shared by x,
    kernel and output, such as experts, counts separate kernels and is in neither.
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
    """Token embeddings; `attend` multiplies by the transposed table, for tied heads.

    Embeddings are scaled by `config.embed_scale`; `attend` is not.
    """

    def __init__(self, vocab_size: int, config: StackConfig, *, rngs: nnx.Rngs):
        shape = (vocab_size, config.embed_dim)
        table = config.init.std * rngs.params.normal(shape, config.numerics.param_dtype)
        self.dtype, self.scale = config.numerics.dtype, config.embed_scale
        self.reduce_dtype = config.numerics.reduce_dtype
        self.embedding = nnx.Param(table, dims="VD", summed="V")

    def __call__(self, tokens_BT: Array) -> Array:
        """Looks up embeddings, BTD. A token outside the vocabulary gives NaN where it is traced.

        Raises:
            AssertionError: tokens are not integers, BT.
            UserError: tokens whose values are known are outside the vocabulary.
        """
        chex.assert_rank(tokens_BT, 2)
        chex.assert_type(tokens_BT, int)
        check_vocabulary(tokens_BT, self.embedding.shape[0])
        x_BTD = look_up(self.embedding[...], jnp.asarray(tokens_BT), self.dtype)
        return x_BTD if self.scale == 1.0 else x_BTD * jnp.asarray(self.scale, self.dtype)

    def attend(self, x_BTD: Array) -> Array:
        """Returns the logits of a tied head, BTV, in float32."""
        return project("BTD,VD->BTV", x_BTD, self.embedding[...], self.reduce_dtype)


def check_vocabulary(tokens_BT: Array, vocab_size: int) -> None:
    """Raises UserError for a token outside the vocabulary, if this process knows the values."""
    is_known = not isinstance(tokens_BT, jax.core.Tracer | jax.ShapeDtypeStruct)
    if not is_known or not getattr(tokens_BT, "is_fully_addressable", True):
        return
    given_BT = np.asarray(tokens_BT)
    is_outside_BT = (given_BT < 0) | (given_BT >= vocab_size)
    if is_outside_BT.any():
        row, place = np.argwhere(is_outside_BT)[0].tolist()
        raise UserError(
            f"token {given_BT[row, place]} in row {row}, position {place}, is outside the "
            f"vocabulary, which has tokens 0 to {vocab_size - 1}; "
            f"{is_outside_BT.sum()} of {given_BT.size} tokens are"
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "bias_V"),
    meta_fields=("dims", "scale", "softcap", "reduce_dtype"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """Logits are `transform(x @ kernel, bias_V)`: a pytree, for losses that never hold them all."""

    kernel: Array
    bias_V: Array | None
    dims: str  # the kernel's letters: DV, or VD if it is the embedding's
    scale: float
    softcap: float | None
    reduce_dtype: ReduceDtype = "float32"  # in which devices sum the kernel's gradient

    def transform(self, products: Array, bias_V: Array | None) -> Array:
        """Maps products of hidden states and kernel, (..., V), to logits, in float32.

        `bias_V` stands for the head's own, so that a part of the vocabulary can be given.
        """
        logits = products if self.scale == 1.0 else products * self.scale
        if bias_V is not None:
            logits = logits + bias_V.astype(jnp.float32)
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)


class PositionTable(nnx.Module):
    """Learned position embeddings, for positions below `max_len`."""

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        self.offset = config.positions.offset
        shape = (self.offset + config.max_len, config.embed_dim)
        table = config.init.std * rngs.params.normal(shape, config.numerics.param_dtype)
        self.dtype = config.numerics.dtype
        self.embedding = nnx.Param(table, dims=".D", summed=".")

    def __call__(self, positions_BT: Array) -> Array:
        """Looks up position embeddings, BTD. Positions past the table give NaN."""
        table, rows_BT = constrain(self.embedding[...], ".."), positions_BT + self.offset
        return table.at[rows_BT].get(mode="fill", fill_value=jnp.nan).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def project(
    equation: str,
    x: Array,
    kernel: Array,
    reduce_dtype: ReduceDtype = "float32",
    matmul_dtype: MatmulDtype = "dtype",
) -> Array:
    """Computes `einsum(equation, x, kernel)` in the dtype of `x`, accumulated in float32.

    The result is float32. The kernel's gradient has the kernel's own dtype and is not first rounded
    to that of `x`; devices that have parts of it sum them in `reduce_dtype`. With float8, what
    goes into each of the three products is rounded to 8 bits.
    """
    if matmul_dtype == "float8":
        return float8_einsum(equation, x, kernel)
    return jnp.einsum(equation, x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


def _project_forward(
    equation: str, x: Array, kernel: Array, reduce_dtype: ReduceDtype, matmul_dtype: MatmulDtype
) -> tuple[Array, tuple[Array, Array]]:
    return project(equation, x, kernel, reduce_dtype, matmul_dtype), (x, kernel)


def _project_backward(
    equation: str,
    reduce_dtype: ReduceDtype,
    matmul_dtype: MatmulDtype,
    saved: tuple[Array, Array],
    dy: Array,
) -> tuple[Array, Array]:
    x, kernel = saved
    dy = dy.astype(x.dtype)
    dx = input_gradient(equation, dy, kernel, matmul_dtype)
    dkernel = kernel_gradient(equation, x, dy, reduce_dtype, matmul_dtype)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


def input_gradient(
    equation: str, dy: Array, kernel: Array, matmul_dtype: MatmulDtype = "dtype"
) -> Array:
    """Returns the gradient of a projection's input, in float32; `dy` has the input's dtype."""
    x_dims, kernel_dims, y_dims = re.split(",|->", equation)
    backward = f"{y_dims},{kernel_dims}->{x_dims}"
    if matmul_dtype == "float8":
        return float8_einsum(backward, dy, kernel, formats=(GRADIENT, FORWARD))
    return jnp.einsum(backward, dy, kernel.astype(dy.dtype), preferred_element_type=jnp.float32)


def kernel_gradient(
    equation: str,
    x: Array,
    dy: Array,
    dtype: ReduceDtype = "float32",
    matmul_dtype: MatmulDtype = "dtype",
) -> Array:
    """Returns the gradient of a projection's kernel, summed in float32 on each device.

    XLA's partitioner sums over devices in the dtype of the result.

    The product is arranged for speed on CPU: XLA's fast path needs the contracted dimensions last
    in memory, and a barrier keeps XLA from folding the transposition back in.
    """
    product = functools.partial(_kernel_product, equation, matmul_dtype)
    staged = sum_in_stages(functools.partial(product, jnp.float32), equation, x, dy, dtype)
    return product(dtype, x, dy) if staged is None else staged


def _kernel_product(
    equation: str, matmul_dtype: MatmulDtype, dtype: DTypeLike, x: Array, dy: Array
) -> Array:
    x_dims, kernel_dims, y_dims = re.split(",|->", equation)
    if matmul_dtype == "float8":
        forward = f"{x_dims},{y_dims}->{kernel_dims}"
        return float8_einsum(forward, x, dy, formats=(FORWARD, GRADIENT)).astype(dtype)
    flipped = "".join(sorted(x_dims, key=y_dims.__contains__))  # summed dimensions (B, T) last
    x_flipped = jnp.einsum(f"{x_dims}->{flipped}", x)
    x_flipped = jax.lax.platform_dependent(
        x_flipped, cpu=jax.lax.optimization_barrier, default=lambda same: same
    )
    forward = f"{flipped},{y_dims}->{kernel_dims}"
    return jnp.einsum(forward, x_flipped, dy, preferred_element_type=dtype)
