"""nima's GPT-style decoder and encoder-decoder, from `nima.md`.

The defaults compute what the original does; the other switches are those its guide describes.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jaxllm.interop.reference.attention import create_causal_mask
from jaxllm.interop.reference.fields import as_fields
from jaxllm.interop.reference.positions import sinusoids

from .layers import DecoderLayer, EncoderLayer, LayerConfig, PositionKind, check_choice

Init = Literal["xavier", "normal"]

# "Nima model sizes" of the guide, for `GPTModel(vocab_size, **PRESETS["small"])`.
PRESETS = {
    "tiny": {"d_model": 256, "n_layers": 4, "n_heads": 4, "d_ff": 1024},
    "small": {"d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 3072},
    "medium": {"d_model": 1024, "n_layers": 24, "n_heads": 16, "d_ff": 4096},
}


class PositionalEncoding(nn.Module):
    """Sinusoidal positions. Checkpoints store the buffer `pe`: (max_seq_len, 1, D)."""

    def __init__(self, d_model: int, max_seq_len: int):
        super().__init__()
        self.register_buffer("pe", _waves(torch.arange(max_seq_len), d_model)[:, None])

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the output, BTD."""
        _, T, D = x_BTD.shape
        return x_BTD + _waves(torch.arange(T), D, x_BTD.dtype)


def _waves(positions: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    # Computed by `exp` as in the recorded buffers; a power differs in the last bits.
    exponents = torch.arange(0, dim, 2, dtype=dtype) * (-math.log(10000.0) / dim)
    return sinusoids(positions, exponents.exp())


class ScaledEmbedding(nn.Embedding):
    """Embeddings times the square root of their width, so that positions are small beside them."""

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Returns the output, BTD."""
        return super().forward(tokens_BT) * self.embedding_dim**0.5


class Positioned(nn.Module):
    """Base class of both models: added positions, dropout and initialization."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        if config.position == "learned":
            self.pos_embedding = nn.Embedding(config.max_seq_len, config.d_model)
        elif config.position == "sinusoidal":
            self.pos_encoding = PositionalEncoding(config.d_model, config.max_seq_len)

    def add_positions(self, x_BTD: Tensor) -> Tensor:
        """Adds learned or sinusoidal positions: BTD. Raises ValueError beyond `max_seq_len`."""
        length = x_BTD.shape[1]
        if length > self.config.max_seq_len:
            raise ValueError(f"{length} tokens exceed max_seq_len={self.config.max_seq_len}")
        if self.config.position == "learned":
            x_BTD = x_BTD + self.pos_embedding(torch.arange(length))
        elif self.config.position == "sinusoidal":
            x_BTD = self.pos_encoding(x_BTD)
        return self.dropout(x_BTD)

    def initialize(self, init: Init) -> None:
        """Initialises embeddings (std 0.02), matrices (same, or Xavier uniform), zero biases."""
        check_choice("init", init, Init)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                if init == "xavier":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class GPTModel(Positioned):
    """Decoder: tokens, BT, to logits of the next token, BTV. `layer`: fields of `LayerConfig`."""

    def __init__(
        self,
        vocab_size: int,
        n_layers: int,
        *,
        position: PositionKind = "learned",
        tie_weights: bool = True,
        init: Init = "xavier",
        **layer: Any,
    ):
        config = LayerConfig(position=position, **layer)
        super().__init__(config)
        self.token_embedding = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(n_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        sizes = {"vocab_size": vocab_size, "n_layers": n_layers}
        self.fields = as_fields("nima-gpt", config, **sizes, tie_weights=tie_weights, init=init)
        self.output_projection = nn.Linear(config.d_model, vocab_size, bias=False)
        self.initialize(init)
        if tie_weights:
            self.output_projection.weight = self.token_embedding.weight

    def forward(self, tokens_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """Returns the logits, BTV. A 0 in the mask hides that token from every query."""
        mask = create_causal_mask(tokens_BT.shape[1])
        if attention_mask_BT is not None:
            mask = mask & attention_mask_BT.bool()[:, None]
        x_BTD = self.add_positions(self.token_embedding(tokens_BT))
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask)
        return self.output_projection(self.layer_norm(x_BTD))


class TransformerModel(Positioned):
    """Encoder-decoder: source and target tokens, BS and BT, to logits of the next target token.

    Pre-norm adds a norm after each stack; post-norm stacks already end in one. `layer` are fields
    of `LayerConfig`.
    """

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        n_encoder_layers: int,
        n_decoder_layers: int,
        *,
        pad_idx: int = 0,
        position: PositionKind = "sinusoidal",
        tie_weights: bool = False,
        init: Init = "xavier",
        **layer: Any,
    ):
        config = LayerConfig(position=position, **layer)
        super().__init__(config)
        D = config.d_model
        self.pad_idx = pad_idx
        sizes = {
            "src_vocab_size": src_vocab_size,
            "tgt_vocab_size": tgt_vocab_size,
            "n_encoder_layers": n_encoder_layers,
            "n_decoder_layers": n_decoder_layers,
        }
        switches = {"pad_idx": pad_idx, "tie_weights": tie_weights, "init": init}
        self.fields = as_fields("nima-transformer", config, **sizes, **switches)
        self.src_embedding = ScaledEmbedding(src_vocab_size, D)
        self.tgt_embedding = ScaledEmbedding(tgt_vocab_size, D)
        self.encoder_layers = nn.ModuleList(EncoderLayer(config) for _ in range(n_encoder_layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(config) for _ in range(n_decoder_layers))
        is_pre_norm = config.norm == "pre"
        self.encoder_norm = nn.LayerNorm(D) if is_pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(D) if is_pre_norm else nn.Identity()
        self.output_projection = nn.Linear(D, tgt_vocab_size)
        self.initialize(init)
        if tie_weights:
            self.output_projection.weight = self.tgt_embedding.weight

    def forward(self, src_BS: Tensor, tgt_BT: Tensor) -> Tensor:
        """Returns the logits, BTV."""
        return self.decode(tgt_BT, self.encode(src_BS), src_BS)

    def encode(self, src_BS: Tensor) -> Tensor:
        """Encodes the source; `pad_idx` is masked. BSD."""
        visible_B1S = (src_BS != self.pad_idx)[:, None]
        x_BSD = self.add_positions(self.src_embedding(src_BS))
        for layer in self.encoder_layers:
            x_BSD = layer(x_BSD, visible_B1S)
        return self.encoder_norm(x_BSD)

    def decode(self, tgt_BT: Tensor, memory_BSD: Tensor, src_BS: Tensor) -> Tensor:
        """Returns the logits, BTV. The causal mask hides the target's padding, which comes last."""
        visible_B1S = (src_BS != self.pad_idx)[:, None]
        mask_TT = create_causal_mask(tgt_BT.shape[1])
        x_BTD = self.add_positions(self.tgt_embedding(tgt_BT))
        for layer in self.decoder_layers:
            x_BTD = layer(x_BTD, mask_TT, memory_BSD, visible_B1S)
        return self.output_projection(self.decoder_norm(x_BTD))
