"""Dropout (Srivastava et al., 2014), by keys that are passed along: without one it is off."""

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """`x` with this share of its elements 0 and the others larger, so that its mean stays.

    Without a key, `x` itself.
    """
    if key is None:
        return x
    is_kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(is_kept, x / (1 - rate), 0)


def subkeys(key: Array | None, count: int) -> tuple[Array | None, ...]:
    """Independent keys; None without a key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


def layer_keys(key: Array, layers: range) -> Array:
    """The keys of these layers, however the others are stacked: one key, or several along L."""
    if len(layers) == 1:
        return jax.random.fold_in(key, layers.start)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.array(layers))
