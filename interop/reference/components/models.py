"""Regression, autoregressive and encoder-decoder models over continuous inputs.

They follow `transformer_components.md`.

Letters in this file: I `input_dim`, O `output_dim`. The keyword arguments `layer` are fields of
`LayerConfig`. With `use_kv_cache`, successive passes continue one sequence until `reset_cache`.
"""

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jaxllm.interop.reference.fields import as_fields

from .attention import GroupQueryAttention
from .layers import (
    Layer,
    LayerConfig,
    PositionalEncoding,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)


class Model(nn.Module):
    """Base class of the models: tracks the cached sequence and sums the experts' losses."""

    model_type: ClassVar[str]  # the value in the config file

    def __init__(self, config: LayerConfig, **sizes: int):
        super().__init__()
        self.config = config
        self.fields = as_fields(self.model_type, config, **sizes)
        self.seen = 0  # tokens seen so far, in the cache or dropped from it

    @property
    def aux_loss(self) -> Tensor:
        """The load-balancing loss of the last pass, summed over the layers."""
        layers = (layer for layer in self.modules() if isinstance(layer, Layer))
        return sum((layer.aux_loss for layer in layers), torch.zeros(()))

    def reset_cache(self) -> None:
        """Clears the caches to start a new sequence."""
        self.seen = 0
        for module in self.modules():
            if isinstance(module, GroupQueryAttention):
                module.reset_cache()

    def advance(self, num_tokens: int, expanding_context: bool) -> int:
        """Advances the sequence and returns the position of the first of the new tokens.

        Raises ValueError if the sequence exceeds `max_seq_len`, unless it slides a window.
        """
        start, end = self.seen, self.seen + num_tokens
        if expanding_context and end > self.config.max_seq_len:
            raise ValueError(f"{end} tokens exceed max_seq_len={self.config.max_seq_len}")
        if self.config.use_kv_cache:
            self.seen = end
        return start


class SequenceModel(Model):
    """Base class of models with a stack of layers between two projections."""

    def __init__(self, input_dim: int, output_dim: int, num_layers: int, config: LayerConfig):
        sizes = {"input_dim": input_dim, "output_dim": output_dim, "num_layers": num_layers}
        super().__init__(config, **sizes)
        self.input_proj = nn.Linear(input_dim, config.embed_dim)
        self.pe = PositionalEncoding(config.embed_dim, config.max_seq_len)
        self.layers = nn.ModuleList(TransformerEncoderLayer(config) for _ in range(num_layers))
        self.out_proj = nn.Linear(config.embed_dim, output_dim)

    def run(self, x_BTI: Tensor, expanding_context: bool = True) -> Tensor:
        """Returns the output of the last layer, BTD."""
        start = self.advance(x_BTI.shape[1], expanding_context)
        h_BTD = self.pe(self.input_proj(x_BTI), start)
        for layer in self.layers:
            h_BTD = layer(h_BTD, expanding_context)
        return h_BTD


class TransformerModel(SequenceModel):
    """Regression: a sequence, BTI, to one vector, BO.

    Raises ValueError for a cache: the mean needs the whole sequence.
    """

    model_type = "components-regression"

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_layers: int,
        *,
        apply_causal_mask: bool = False,
        use_kv_cache: bool = False,
        **layer: Any,
    ):
        if use_kv_cache:
            raise ValueError(
                f"use_kv_cache={use_kv_cache} is not supported: the mean needs the whole sequence"
            )
        config = LayerConfig(apply_causal_mask=apply_causal_mask, **layer)
        super().__init__(input_dim, output_dim, num_layers, config)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Returns the output, BO."""
        return self.out_proj(self.run(x_BTI).mean(dim=1))


class AutoregressiveTransformerModel(SequenceModel):
    """Autoregressive model: a sequence, BTI, to a vector per token, BTO."""

    model_type = "components-autoregressive"

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_layers: int,
        *,
        apply_causal_mask: bool = True,
        **layer: Any,
    ):
        config = LayerConfig(apply_causal_mask=apply_causal_mask, **layer)
        super().__init__(input_dim, output_dim, num_layers, config)

    def forward(self, x_BTI: Tensor, expanding_context: bool = True) -> Tensor:
        """Returns the output, BTO. With a cache, `x` holds only the tokens since the last pass."""
        return self.out_proj(self.run(x_BTI, expanding_context))

    def generate_next_token(self, x_BTI: Tensor, expanding_context: bool = True) -> Tensor:
        """Returns the output at the last token: (B, 1, O)."""
        return self(x_BTI, expanding_context)[:, -1:]


class EncoderDecoder(Model):
    """Encoder-decoder: source, BSI, and target, BTI, to a vector per target token, BTO.

    The encoder sees the whole source at once and has no cache; the mask and the cache belong to
    the decoder.
    """

    model_type = "components-encoder-decoder"

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        *,
        apply_causal_mask: bool = True,
        **layer: Any,
    ):
        config = LayerConfig(apply_causal_mask=apply_causal_mask, **layer)
        encoder = dataclasses.replace(config, apply_causal_mask=False, use_kv_cache=False)
        sizes = {"input_dim": input_dim, "output_dim": output_dim}
        depths = {
            "num_encoder_layers": num_encoder_layers,
            "num_decoder_layers": num_decoder_layers,
        }
        super().__init__(config, **sizes, **depths)
        D = config.embed_dim
        self.encoder_input_proj = nn.Linear(input_dim, D)
        self.decoder_input_proj = nn.Linear(input_dim, D)
        self.encoder_pe = PositionalEncoding(D, config.max_seq_len)
        self.decoder_pe = PositionalEncoding(D, config.max_seq_len)
        self.encoder_layers = nn.ModuleList(
            TransformerEncoderLayer(encoder) for _ in range(num_encoder_layers)
        )
        self.decoder_layers = nn.ModuleList(
            TransformerDecoderLayer(config) for _ in range(num_decoder_layers)
        )
        self.out_proj = nn.Linear(D, output_dim)

    def forward(self, source_BSI: Tensor, target_BTI: Tensor) -> Tensor:
        """Returns the output, BTO."""
        return self.decode(target_BTI, self.encode(source_BSI))

    def encode(self, source_BSI: Tensor) -> Tensor:
        """Encodes the source, BSD, and clears the caches. Raises ValueError if it is too long."""
        if source_BSI.shape[1] > self.config.max_seq_len:
            raise ValueError(
                f"{source_BSI.shape[1]} tokens exceed max_seq_len={self.config.max_seq_len}"
            )
        self.reset_cache()
        h_BSD = self.encoder_pe(self.encoder_input_proj(source_BSI))
        for layer in self.encoder_layers:
            h_BSD = layer(h_BSD)
        return h_BSD

    def decode(
        self, target_BTI: Tensor, encoder_output_BSD: Tensor, expanding_context: bool = True
    ) -> Tensor:
        """Decodes the target, BTO; with a cache, only its tokens since the last pass.

        Raises ValueError if there are no new tokens.
        """
        fresh_BTI = target_BTI[:, self.seen :]
        if fresh_BTI.shape[1] == 0:
            raise ValueError(
                f"no new tokens: {target_BTI.shape[1]} target tokens, {self.seen} already decoded"
            )
        start = self.advance(fresh_BTI.shape[1], expanding_context)
        h_BTD = self.decoder_pe(self.decoder_input_proj(fresh_BTI), start)
        for layer in self.decoder_layers:
            h_BTD = layer(h_BTD, encoder_output_BSD, expanding_context)
        return self.out_proj(h_BTD)
