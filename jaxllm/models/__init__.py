"""Whole models: decoders, encoder-decoders, and their counterparts over continuous inputs."""

import dataclasses
from typing import Any, TypeVar, overload

from flax import nnx

from jaxllm.config import (
    Config,
    DecoderConfig,
    EncoderDecoderConfig,
    SequenceConfig,
    SequenceToSequenceConfig,
    StackConfig,
    with_fields,
)

from .decoder import Decoder
from .encoder_decoder import EncoderDecoder
from .output import Output
from .sequence import SequenceModel
from .sequence_to_sequence import SequenceToSequence

__all__ = [
    "Decoder",
    "EncoderDecoder",
    "Model",
    "Output",
    "SequenceModel",
    "SequenceToSequence",
    "TokenModel",
    "build",
    "build_abstract",
    "with_scanned_layers",
    "with_window",
]

# Models of tokens.
TokenModel = Decoder | EncoderDecoder
# All models.
Model = TokenModel | SequenceModel | SequenceToSequence
AnyModel = TypeVar("AnyModel", bound=Model)


@overload
def build(config: DecoderConfig, *, rngs: nnx.Rngs) -> Decoder: ...
@overload
def build(config: EncoderDecoderConfig, *, rngs: nnx.Rngs) -> EncoderDecoder: ...
@overload
def build(config: SequenceConfig, *, rngs: nnx.Rngs) -> SequenceModel: ...
@overload
def build(config: SequenceToSequenceConfig, *, rngs: nnx.Rngs) -> SequenceToSequence: ...
def build(config: Config, *, rngs: nnx.Rngs) -> Model:
    """Builds the model that `config` describes, with random weights from `rngs`."""
    return _CLASSES[type(config)](config, rngs=rngs)


_CLASSES: dict[type[Config], Any] = {
    DecoderConfig: Decoder,
    EncoderDecoderConfig: EncoderDecoder,
    SequenceConfig: SequenceModel,
    SequenceToSequenceConfig: SequenceToSequence,
}


@overload
def build_abstract(config: DecoderConfig) -> Decoder: ...
@overload
def build_abstract(config: EncoderDecoderConfig) -> EncoderDecoder: ...
@overload
def build_abstract(config: SequenceConfig) -> SequenceModel: ...
@overload
def build_abstract(config: SequenceToSequenceConfig) -> SequenceToSequence: ...
def build_abstract(config: Config) -> Model:
    """Builds the model with shapes and dtypes in place of weights; allocates no arrays."""
    return nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))


def with_scanned_layers(model: AnyModel, scan: bool) -> AnyModel:
    """Returns the same model and weights, with layers stacked for a scan or kept one by one."""
    return model.restacked(scan)  # type: ignore[return-value] # mypy takes Self for the union


def with_window(model: AnyModel, window: int) -> AnyModel:
    """Returns the same model and weights with sliding-window attention in every layer.

    The cache of a layer then holds `window` tokens, however long the text.

    Args:
        model: of an encoder and a decoder, only the decoder changes.
        window: the number of tokens that a query sees, its own included.
    """
    config, origin = model.config, model.origin
    if isinstance(config, StackConfig):
        config = _slid(config, window)
    else:
        config = dataclasses.replace(config, decoder=_slid(config.decoder, window))
    changed = nnx.merge(nnx.graphdef(build_abstract(config)), nnx.state(model))
    changed.origin = origin
    return changed


def _slid(config: Any, window: int) -> Any:
    pattern = tuple(dataclasses.replace(kind, attention="window") for kind in config.pattern)
    return with_fields(
        config, {"attention.window": window, "attention.chunk": None}, pattern=pattern
    )
