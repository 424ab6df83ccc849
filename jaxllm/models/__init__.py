"""Whole models."""

from flax import nnx

from jaxllm.config import DecoderConfig
from jaxllm.models.decoder import Decoder, Output, with_scanned_layers

__all__ = ["Decoder", "Output", "build", "build_abstract", "with_scanned_layers"]


def build(config: DecoderConfig, *, rngs: nnx.Rngs) -> Decoder:
    """The model that `config` describes, with random weights."""
    return Decoder(config, rngs=rngs)


def build_abstract(config: DecoderConfig) -> Decoder:
    """The model with shapes and dtypes in place of weights: nothing is allocated."""
    return nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
