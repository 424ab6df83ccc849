"""Log-likelihoods of whole sequences, with gradients, which never hold all logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.layers.context import Context
from jaxllm.layers.experts.balance import Balance
from jaxllm.layers.linear import Head
from jaxllm.models import Decoder
from jaxllm.sharding import constrain
from jaxllm.train.loss import LossConfig, losses_on_devices
from jaxllm.train.objective import Batch


def log_likelihoods(
    model: Decoder, batch: Batch, options: LossConfig, dropout_key: Array | None = None
) -> tuple[Array, Balance]:
    """Returns the log-likelihood of each answer given its prompt in nats, float32 (B, 2).

    Args:
        model: a decoder.
        batch: see `PreferenceRows.take`.
        options: of the cross-entropy.
        dropout_key: None disables dropout.
    """
    # Pairs lie next to each other, so that rows stay on the devices that have them.
    tokens, targets, segments = (
        constrain(batch[name].reshape(-1, batch[name].shape[-1]), "BT")
        for name in ("tokens", "targets", "segment_ids")
    )
    x_BTD, _, balance = model.hidden(tokens[:, :-1], Context(segments, dropout_key=dropout_key))
    plain = dataclasses.replace(options, z_loss=0.0)
    mask_BT = targets.astype(jnp.float32)
    losses_B = row_losses(plain, model.head(), x_BTD, tokens[:, 1:], mask_BT)
    return -losses_B.reshape(-1, 2), balance


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def row_losses(
    options: LossConfig, head: Head, x_BTD: Array, targets_BT: Array, mask_BT: Array
) -> Array:
    """Returns the negative log-likelihood of each row, B, summed over the targets that count.

    The gradient computes the logits again, a chunk at a time.

    Args:
        options: see `LossConfig`.
        head: maps hidden states to logits.
        x_BTD: final hidden states.
        targets_BT: token ids to predict.
        mask_BT: which targets count, float32.
    """
    rows, groups_BT = _rows(targets_BT)
    loss_B, *_ = losses_on_devices(
        (options, rows), head, x_BTD, targets_BT, mask_BT, groups_BT, with_gradient=False
    )
    return loss_B


def _forward(options: LossConfig, *given: Array) -> tuple[Array, tuple]:
    return row_losses(options, *given), given


def _backward(options: LossConfig, given: tuple, dloss_B: Array) -> tuple:
    head, x_BTD, targets_BT, mask_BT = given
    rows, groups_BT = _rows(targets_BT)
    weights_BT = mask_BT * dloss_B[:, None]
    _, dhead, dx_BTD = losses_on_devices(
        (options, rows), head, x_BTD, targets_BT, weights_BT, groups_BT, with_gradient=True
    )
    return dhead, dx_BTD, None, None


row_losses.defvjp(_forward, _backward)


def _rows(targets_BT: Array) -> tuple[int, Array]:
    """Returns the number of rows, and the row of each target."""
    rows = targets_BT.shape[0]
    return rows, jnp.broadcast_to(jnp.arange(rows)[:, None], targets_BT.shape)
