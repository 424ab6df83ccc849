"""The output head: the arrays and numbers that map hidden states to logits."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "bias_V"),
    meta_fields=("dims", "scale", "softcap"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """Logits are `transform(x @ kernel, bias_V)`: a pytree, for losses that never hold them all."""

    kernel: Array
    bias_V: Array | None
    dims: str  # the kernel's letters: DV, or VD if it is the embedding's
    scale: float
    softcap: float | None

    def transform(self, products: Array, bias_V: Array | None) -> Array:
        """Maps products of hidden states and kernel, (..., V), to logits, in float32.

        `bias_V` stands for the head's own, so that a part of the vocabulary can be given.
        """
        logits = products if self.scale == 1.0 else products * self.scale
        if bias_V is not None:
            logits = logits + bias_V.astype(jnp.float32)
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)
