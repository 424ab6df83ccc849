"""Training objectives: how each model class turns a batch into a summed loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxllm.layers.context import Context
from jaxllm.layers.experts.balance import Balance
from jaxllm.models import Decoder, EncoderDecoder, Model, SequenceModel, SequenceToSequence

from .loss import LossConfig, chunked_cross_entropy, grouped_cross_entropy, squared_error

Batch = dict[str, Array]  # one row per example; `mask` says which targets count


class Loss(NamedTuple):
    """A loss, summed over the targets that count."""

    total: Array
    balance: Balance  # of experts
    by_source_S: Array | None = None  # of each source of a mixture, without a gradient
    sums: dict[str, Array] | None = None  # figures by name, summed likewise, without a gradient


class Objective(NamedTuple):
    """A loss function and the unit of its result.

    The loss takes the model, a batch, the options of the cross-entropy and a key for dropout.
    """

    loss: Callable[..., Loss]
    unit: str  # of the loss per target


def next_token_loss(
    model: Decoder, batch: Batch, options: LossConfig, dropout_key: Array | None = None
) -> Loss:
    """Cross-entropy of each next token, given the tokens before it and the row's image, if any.

    Args:
        model: a decoder; with vision if the batch has images.
        batch: `tokens` (B, T+1), all but the last as inputs and all but the first as targets;
            `mask` (B, T); optionally `segment_ids` and `positions` (B, T) of packed documents,
            which see only themselves; optionally `images` (batch, channels, height, width), one
            per row, whose embeddings replace the image tokens; optionally `sources` (B, S), which
            source of a mixture each row is from.
        options: see `LossConfig`.
        dropout_key: None disables dropout.
    """
    tokens = batch["tokens"]
    inputs, image = tokens[:, :-1], None
    if "images" in batch:
        image = model.embed_images(batch["images"], inputs)
    segments, positions = batch.get("segment_ids"), batch.get("positions")
    context = Context(segments, positions, dropout_key=dropout_key)
    x_BTD, _, balance = model.hidden(inputs, context, image_embedding=image)
    given = model.head(), x_BTD, tokens[:, 1:], batch["mask"], options
    if (sources := batch.get("sources")) is None:
        return Loss(chunked_cross_entropy(*given), balance)
    groups_BT = jnp.broadcast_to(jnp.argmax(sources, axis=1)[:, None], batch["mask"].shape)
    total, by_source_S = grouped_cross_entropy(*given, groups_BT, sources.shape[1])
    return Loss(total, balance, by_source_S)


def next_target_token_loss(
    model: EncoderDecoder, batch: Batch, options: LossConfig, dropout_key: Array | None = None
) -> Loss:
    """Cross-entropy of each target token, given the source and the target tokens before it.

    Args:
        model: an encoder-decoder.
        batch: `source` and `source_mask` (B, S), where the mask is False at padding; `tokens`
            (B, T+1), the start token and then the target; `mask` (B, T).
        options: see `LossConfig`.
        dropout_key: None disables dropout.
    """
    tokens = batch["tokens"]
    x_BTD, balance = model.hidden(
        batch["source"],
        tokens[:, :-1],
        src_segment_ids=batch["source_mask"].astype(jnp.int32),
        dropout_key=dropout_key,
    )
    head = model.decoder.head()
    total = chunked_cross_entropy(head, x_BTD, tokens[:, 1:], batch["mask"], options)
    return Loss(total, balance)


def vector_loss(
    model: SequenceModel, batch: Batch, options: LossConfig, dropout_key: Array | None = None
) -> Loss:
    """Squared error of the output vector at each position, or of each sequence if pooled.

    Args:
        model: a sequence model.
        batch: `inputs` (B, T, I), `targets` (B, T, O) and `mask` (B, T); for a pooled model
            `targets` (B, O) and `mask` (B,).
        options: unused.
        dropout_key: None disables dropout.
    """
    x_BTD, _, balance = model.hidden(batch["inputs"], Context(dropout_key=dropout_key))
    return Loss(squared_error(model.outputs(x_BTD), batch["targets"], batch["mask"]), balance)


def next_target_vector_loss(
    model: SequenceToSequence, batch: Batch, options: LossConfig, dropout_key: Array | None = None
) -> Loss:
    """Squared error of each target vector, given the source and the target vectors before it.

    The decoder's inputs are the targets shifted by one position, starting with a zero vector.

    Args:
        model: a sequence-to-sequence model.
        batch: `inputs` (B, S, I), `targets` (B, T, O) and `mask` (B, T).
        options: unused.
        dropout_key: None disables dropout.
    """
    shifted_BTO = jnp.pad(batch["targets"][:, :-1], ((0, 0), (1, 0), (0, 0)))
    x_BTD, balance = model.hidden(batch["inputs"], shifted_BTO, dropout_key=dropout_key)
    outputs_BTO = model.decoder.unembed(x_BTD)
    return Loss(squared_error(outputs_BTO, batch["targets"], batch["mask"]), balance)


def get_objective(model: Model) -> Objective:
    """Returns the objective for the model's class."""
    return _OBJECTIVES[type(model)]


_OBJECTIVES: dict[type[Model], Objective] = {
    Decoder: Objective(next_token_loss, "nats per token"),
    EncoderDecoder: Objective(next_target_token_loss, "nats per token"),
    SequenceModel: Objective(vector_loss, "mean squared error"),
    SequenceToSequence: Objective(next_target_vector_loss, "mean squared error"),
}
