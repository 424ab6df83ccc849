"""The output type of all models."""

from typing import NamedTuple

from jax import Array

from jaxllm.layers.attention.cache import Caches


class Output(NamedTuple):
    """The output of a model's call."""

    # BTV, float32; without a head, the hidden states BTD; with continuous inputs, BTO or, if
    # pooled, BO.
    logits: Array
    cache: Caches | None  # with the call's tokens added; None if none was given
    aux_loss: Array  # scalar, to add to the training loss
