"""What a batch means to each kind of model: its call, and the loss of what it returns."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxllm.layers.context import Context
from jaxllm.models import Decoder, EncoderDecoder, Model, SequenceModel, SequenceToSequence

from .loss import chunked_cross_entropy, squared_error

Batch = dict[str, Array]  # rows of examples; `mask` says which of their targets count


class Objective(NamedTuple):
    """How a model's loss is computed, and in what it is measured.

    The loss is a function of the model, a batch, `TrainConfig.loss_chunk` and a key for dropout.
    It returns the sum over the targets that count, and the model's auxiliary loss, a mean already.
    """

    loss: Callable[..., tuple[Array, Array]]
    unit: str  # of the loss for each target


def next_token_loss(
    model: Decoder, batch: Batch, chunk: int, dropout_key: Array | None = None
) -> tuple[Array, Array]:
    """Of each token, given those before it and the images in their places.

    `tokens` (B, T+1): every one but the last is an input, every one but the first a target;
    `mask` (B, T); `images` BCHW, if there are any, one in the places of each row.
    """
    tokens = batch["tokens"]
    inputs, image = tokens[:, :-1], None
    if "images" in batch:
        image = model.embed_images(batch["images"], inputs)
    context = Context(dropout_key=dropout_key)
    x_BTD, _, aux_loss = model.hidden(inputs, context, image_embedding=image)
    total = chunked_cross_entropy(model.unembed, x_BTD, tokens[:, 1:], batch["mask"], chunk)
    return total, aux_loss


def next_target_token_loss(
    model: EncoderDecoder, batch: Batch, chunk: int, dropout_key: Array | None = None
) -> tuple[Array, Array]:
    """Of each token of the target, given the source and those before it.

    `source` and `source_mask` BS; `tokens` (B, T+1), of which the first starts a target; `mask` BT.
    """
    tokens = batch["tokens"]
    x_BTD, aux_loss = model.hidden(
        batch["source"],
        tokens[:, :-1],
        src_segment_ids=batch["source_mask"].astype(jnp.int32),
        dropout_key=dropout_key,
    )
    unembed = model.decoder.unembed
    total = chunked_cross_entropy(unembed, x_BTD, tokens[:, 1:], batch["mask"], chunk)
    return total, aux_loss


def vector_loss(
    model: SequenceModel, batch: Batch, chunk: int, dropout_key: Array | None = None
) -> tuple[Array, Array]:
    """Of the vector that each token, or each sequence, is to become.

    `inputs` BTI, `targets` BTO and `mask` BT; of a pooled model `targets` BO and `mask` B.
    """
    out = model(batch["inputs"], dropout_key=dropout_key)
    return squared_error(out.logits, batch["targets"], batch["mask"]), out.aux_loss


def next_target_vector_loss(
    model: SequenceToSequence, batch: Batch, chunk: int, dropout_key: Array | None = None
) -> tuple[Array, Array]:
    """Of each vector of the target, given the source and those before it; zeros are the first.

    `inputs` BSI, `targets` BTO and `mask` BT.
    """
    before_BTO = jnp.pad(batch["targets"][:, :-1], ((0, 0), (1, 0), (0, 0)))
    out = model(batch["inputs"], before_BTO, dropout_key=dropout_key)
    return squared_error(out.logits, batch["targets"], batch["mask"]), out.aux_loss


def get_objective(model: Model) -> Objective:
    """The objective of a model's class."""
    return _OBJECTIVES[type(model)]


_OBJECTIVES: dict[type[Model], Objective] = {
    Decoder: Objective(next_token_loss, "nats per token"),
    EncoderDecoder: Objective(next_target_token_loss, "nats per token"),
    SequenceModel: Objective(vector_loss, "mean squared error"),
    SequenceToSequence: Objective(next_target_vector_loss, "mean squared error"),
}
