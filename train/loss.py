"""The losses: cross-entropy without ever holding all logits, and the squared error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax


def chunked_cross_entropy(
    unembed: Callable[[Array], Array], x_BTD: Array, targets_BT: Array, mask_BT: Array, chunk: int
) -> Array:
    """The summed negative log-likelihood, in nats, of each masked-in target.

    Args:
        unembed: from hidden states to logits, of any size of vocabulary.
        x_BTD: the hidden states that predict.
        targets_BT: what they are to predict.
        mask_BT: which targets count.
        chunk: how many tokens of a sequence have their logits in memory at a time. Their logits
            are computed again for the gradient if there is more than one chunk.
    """

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
    """`-log softmax(logits)[target]`, BT."""
    # A comparison rather than a lookup: V may be sharded.
    is_target = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == targets_BT[..., None]
    picked_BT = jnp.sum(jnp.where(is_target, logits_BTV, 0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT


def squared_error(x_BTO: Array, targets_BTO: Array, mask_BT: Array) -> Array:
    """The sum, over the masked-in vectors, of the mean of a vector's squared errors.

    BO and B where there is one vector for a sequence.
    """
    return jnp.sum(jnp.mean(jnp.square(x_BTO - targets_BTO), axis=-1) * mask_BT)


def _cut(x: Array, num_chunks: int, chunk: int) -> Array:
    """BT... padded with zeros and cut along T: chunks first, then B and T."""
    padding = [(0, 0), (0, num_chunks * chunk - x.shape[1]), *((0, 0),) * (x.ndim - 2)]
    padded = jnp.pad(x, padding)
    return padded.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:]).swapaxes(0, 1)
