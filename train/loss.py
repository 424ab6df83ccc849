"""Losses: chunked cross-entropy, which never holds all logits, and squared error."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax


def chunked_cross_entropy(
    unembed: Callable[[Array], Array], x_BTD: Array, targets_BT: Array, mask_BT: Array, chunk: int
) -> Array:
    """Returns the negative log-likelihood in nats, summed over the targets that count.

    Args:
        unembed: maps hidden states (B, T, D) to logits (B, T, V).
        x_BTD: final hidden states.
        targets_BT: token ids to predict.
        mask_BT: which targets count.
        chunk: the number of tokens per sequence whose logits are in memory at a time. With more
            than one chunk, logits are recomputed in the backward pass.
    """
    chex.assert_equal_shape_prefix([x_BTD, targets_BT, mask_BT], 2)

    def chunk_loss(x_BTD: Array, targets_BT: Array, mask_BT: Array) -> Array:
        return jnp.sum(cross_entropy(unembed(x_BTD), targets_BT) * mask_BT)

    length = targets_BT.shape[1]
    if length <= chunk:
        return chunk_loss(x_BTD, targets_BT, mask_BT)
    # Chunks along T, so that the batch stays sharded as it is.
    num_chunks = -(-length // chunk)
    chunks = [_cut(x, num_chunks, chunk) for x in (x_BTD, targets_BT, mask_BT)]
    total, _ = lax.scan(
        lambda total, xs: (total + jax.checkpoint(chunk_loss)(*xs), None),
        jnp.zeros((), jnp.float32),
        tuple(chunks),
    )
    return total


def cross_entropy(logits_BTV: Array, targets_BT: Array) -> Array:
    """Returns `-log softmax(logits)[target]` in nats, (B, T)."""
    # Compares instead of gathering, because V may be sharded.
    is_target = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == targets_BT[..., None]
    picked_BT = jnp.sum(jnp.where(is_target, logits_BTV, 0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT


def squared_error(x_BTO: Array, targets_BTO: Array, mask_BT: Array) -> Array:
    """Returns the mean squared error of each vector, summed over the vectors that count.

    Args:
        x_BTO: predictions; (B, O) if there is one vector per sequence.
        targets_BTO: targets of the same shape.
        mask_BT: which vectors count; (B,) if there is one vector per sequence.
    """
    chex.assert_equal_shape([x_BTO, targets_BTO])
    chex.assert_shape(mask_BT, targets_BTO.shape[:-1])
    return jnp.sum(jnp.mean(jnp.square(x_BTO - targets_BTO), axis=-1) * mask_BT)


def _cut(x: Array, num_chunks: int, chunk: int) -> Array:
    """Zero-pads (B, T, ...) along T and reshapes it to (num_chunks, B, chunk, ...)."""
    padding = [(0, 0), (0, num_chunks * chunk - x.shape[1]), *((0, 0),) * (x.ndim - 2)]
    padded = jnp.pad(x, padding)
    return padded.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:]).swapaxes(0, 1)
