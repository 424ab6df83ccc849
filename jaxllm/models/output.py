"""The result of a model's call."""

from typing import NamedTuple

from jax import Array

from jaxllm.layers.attention.cache import Caches


class Output(NamedTuple):
    """What a model computes from tokens."""

    logits: Array  # BTV, float32; of vectors BTO or, pooled, BO
    cache: Caches | None
    aux_loss: Array  # scalar, to be added to the training loss
