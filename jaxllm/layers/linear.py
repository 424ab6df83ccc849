"""Dense projections, written as einsums so that the equation states every shape."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig
from jaxllm.sharding import constrain


class Linear(nnx.Module):
    """`einsum(equation, x, kernel) + bias`, as in `Linear("BTD,DNH->BTNH", (D, N, H), ...)`."""

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        *,
        config: DecoderConfig,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        _, dims, output = equation.replace("->", ",").split(",")
        kernel = config.init_std * rngs.params.normal(shape, config.param_dtype)
        sizes = {dim: size for dim, size in zip(dims, shape, strict=True) if dim in output}
        bias = jnp.zeros([*sizes.values()], config.param_dtype)
        self.equation = equation
        self.dtype = config.dtype
        self.kernel = nnx.Param(kernel, dims=dims)
        self.bias = nnx.data(nnx.Param(bias, dims="".join(sizes)) if use_bias else None)

    def __call__(self, x: Array) -> Array:
        """The projection, in the config's activation dtype."""
        return self.accumulate(x).astype(self.dtype)

    def accumulate(self, x: Array) -> Array:
        """The projection in float32, as it comes out of the matrix unit: for logits."""
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.einsum(self.equation, x, kernel, preferred_element_type=jnp.float32)
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


class Embedding(nnx.Module):
    """A vector for each token; `attend` is its transpose, for models that tie their head."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.embed_dim)
        table = config.init_std * rngs.params.normal(shape, config.param_dtype)
        self.dtype = config.dtype
        self.embedding = nnx.Param(table, dims="VD")

    def __call__(self, tokens_BT: Array) -> Array:
        """The vectors of `tokens`, BTD."""
        # A lookup in a table split over D reshards the whole table: gather its width first.
        table_VD = constrain(self.embedding[...], "V.")
        return table_VD[tokens_BT].astype(self.dtype)

    def attend(self, x_BTD: Array) -> Array:
        """The logits of a tied head, BTV, in float32."""
        table_VD = self.embedding[...].astype(self.dtype)
        return jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)
