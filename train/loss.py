"""Cross-entropy of the next token, without ever holding all logits."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxllm.models.decoder import Decoder


def next_token_loss(
    model: Decoder,
    tokens: Array,
    mask_BT: Array,
    chunk: int,
    dropout_key: Array | None = None,
) -> tuple[Array, Array]:
    """The summed negative log-likelihood, in nats, of each masked-in token given those before it.

    And the model's auxiliary loss, which is a mean already.

    Args:
        model: of any size of vocabulary.
        tokens: (B, T+1); every token but the last is an input, every token but the first a target.
        mask_BT: which targets count.
        chunk: how many tokens of a sequence have their logits in memory at a time. Their logits
            are computed again for the gradient if there is more than one chunk.
        dropout_key: that of a call of the model.
    """
    x_BTD, _, aux_loss = model.hidden(tokens[:, :-1], dropout_key=dropout_key)
    targets_BT = tokens[:, 1:]

    def chunk_loss(x_BTD: Array, targets_BT: Array, mask_BT: Array) -> Array:
        return jnp.sum(cross_entropy(model.unembed(x_BTD), targets_BT) * mask_BT)

    length = targets_BT.shape[1]
    if length <= chunk:
        return chunk_loss(x_BTD, targets_BT, mask_BT), aux_loss
    # Chunks along T, so that the batch stays sharded as it is.
    num_chunks = -(-length // chunk)
    chunks = [_cut(x, num_chunks, chunk) for x in (x_BTD, targets_BT, mask_BT)]
    total, _ = lax.scan(
        lambda total, xs: (total + jax.checkpoint(chunk_loss)(*xs), None),
        jnp.zeros((), jnp.float32),
        tuple(chunks),
    )
    return total, aux_loss


def cross_entropy(logits_BTV: Array, targets_BT: Array) -> Array:
    """`-log softmax(logits)[target]`, BT."""
    # A comparison rather than a lookup: V may be sharded.
    is_target = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == targets_BT[..., None]
    picked_BT = jnp.sum(jnp.where(is_target, logits_BTV, 0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT


def _cut(x: Array, num_chunks: int, chunk: int) -> Array:
    """BT... padded with zeros and cut along T: chunks first, then B and T."""
    padding = [(0, 0), (0, num_chunks * chunk - x.shape[1]), *((0, 0),) * (x.ndim - 2)]
    padded = jnp.pad(x, padding)
    return padded.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:]).swapaxes(0, 1)
