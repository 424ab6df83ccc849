"""Dropout (Srivastava et al., 2014) with explicit random keys; without a key it is off."""

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Sets elements of `x` to 0 with probability `rate` and scales the rest by `1 / (1 - rate)`.

    Without a key, returns `x` itself.
    """
    if key is None:
        return x
    is_kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(is_kept, x / (1 - rate), 0)


def subkeys(key: Array | None, count: int) -> tuple[Array | None, ...]:
    """Returns `count` independent keys, or as many times None without a key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


def layer_keys(key: Array, layers: range) -> Array:
    """Returns the keys of these layers: a single key, or several stacked along L.

    A layer's key depends only on its index, not on how layers are stacked.
    """
    if len(layers) == 1:
        return jax.random.fold_in(key, layers.start)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.array(layers))
