"""Short convolution over the tokens of a text, of each channel by itself."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import StackConfig


class Convolution(nnx.Module):
    """Computes `silu(sum over c of kernel_c * x_(t - C + 1 + c))` for each token t and channel.

    Before the first token of a text, x is zero.

    Args:
        dims: letters of the channels' dimensions, as "KH".
        shape: their sizes.
        size: tokens that it spans, C.
        config: of the initialization and the dtypes.
        rngs: for the initial kernel.
    """

    def __init__(
        self, dims: str, shape: tuple[int, int], size: int, config: StackConfig, *, rngs: nnx.Rngs
    ):
        drawn = rngs.params.normal((*shape, size), config.numerics.param_dtype)
        self.kernel = nnx.Param(config.init.std * drawn, dims=f"{dims}C")

    def __call__(self, x_BTKH: Array, runs_BT: Array, before_BCKH: Array) -> Array:
        """Returns what each token sees of itself and of the tokens before it, BTKH.

        Args:
            x_BTKH: channels of the tokens.
            runs_BT: numbers of the texts in a row; tokens see those of their own text.
            before_BCKH: channels of the last C - 1 tokens before the first, of run 0.
        """
        T, kernel_KHC = x_BTKH.shape[1], self.kernel[...].astype(jnp.float32)
        size = kernel_KHC.shape[-1]
        wide_BSKH = jnp.concatenate([before_BCKH.astype(x_BTKH.dtype), x_BTKH], axis=1)
        wide_BS = jnp.pad(runs_BT, ((0, 0), (size - 1, 0)))
        total_BTKH = jnp.zeros(x_BTKH.shape, jnp.float32)
        for c in range(size):
            is_own_BT = wide_BS[:, c : c + T] == runs_BT
            seen_BTKH = jnp.where(is_own_BT[..., None, None], wide_BSKH[:, c : c + T], 0)
            total_BTKH += kernel_KHC[..., c] * seen_BTKH
        return jax.nn.silu(total_BTKH.astype(x_BTKH.dtype))

    def empty(self, batch_size: int, dtype: str) -> Array:
        """Returns the channels of no tokens, BCKH."""
        *shape, size = self.kernel.shape
        return jnp.zeros((batch_size, size - 1, *shape), dtype)
