"""Encoder and decoder layers over continuous inputs, after `transformer_components.md`."""

import dataclasses

import torch
from torch import Tensor, nn

from jaxllm.interop.reference.positions import frequencies, sinusoids

from .attention import AttentionKind, GroupQueryAttention, get_attention
from .feed_forward import MOE, FFNConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Settings of the layers of a model. Raises ValueError if they are inconsistent."""

    embed_dim: int
    ffn_latent_dim: int
    num_heads: int
    max_seq_len: int
    attention_type: AttentionKind = "mha"
    num_groups: int | None = None  # for "gqa"; None: num_heads // 2
    apply_causal_mask: bool
    use_kv_cache: bool = False
    ffn_config: FFNConfig | None = None  # None: a dense network

    def __post_init__(self) -> None:
        given = self.ffn.embed_dim, self.ffn.latent_dim
        if given != (wanted := (self.embed_dim, self.ffn_latent_dim)):
            raise ValueError(
                f"ffn_config has (embed_dim, latent_dim) = {given}, but the model has {wanted}"
            )

    @property
    def ffn(self) -> FFNConfig:
        """The config of the feed-forward network."""
        if self.ffn_config is not None:
            return self.ffn_config
        return FFNConfig(embed_dim=self.embed_dim, latent_dim=self.ffn_latent_dim)

    def attention(self) -> GroupQueryAttention:
        """Builds an attention module with these settings."""
        return get_attention(
            self.attention_type,
            self.embed_dim,
            self.num_heads,
            self.num_groups,
            self.apply_causal_mask,
            self.use_kv_cache,
            self.max_seq_len,
        )


class PositionalEncoding(nn.Module):
    """Sinusoidal positions. Checkpoints store the buffer `pe`: (1, max_seq_len, D)."""

    def __init__(self, embed_dim: int, max_seq_len: int):
        super().__init__()
        self.register_buffer("pe", _waves(torch.arange(max_seq_len), embed_dim)[None])

    def forward(self, x_BTD: Tensor, start: int = 0) -> Tensor:
        """Adds positions from `start` on: BTD. A sliding window may run past the buffer."""
        _, T, D = x_BTD.shape
        return x_BTD + _waves(torch.arange(start, start + T), D, x_BTD.dtype)


def _waves(positions: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return sinusoids(positions, frequencies(dim, 10000.0, dtype))[:, :dim]


class Layer(nn.Module):
    """Base class of encoder and decoder layers: a dense or mixture-of-experts network."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.ffn = config.ffn.build()
        self.aux_loss = torch.zeros(())  # load-balancing loss of the last pass

    def feed(self, x_BTD: Tensor) -> Tensor:
        """Returns the output, BTD."""
        if not isinstance(self.ffn, MOE):
            return self.ffn(x_BTD)
        out_BTD, self.aux_loss = self.ffn(x_BTD)
        return out_BTD


class TransformerEncoderLayer(Layer):
    """Post-norm layer of self-attention and feed-forward."""

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.attn = config.attention()
        self.norm_1 = nn.LayerNorm(config.embed_dim)
        self.norm_2 = nn.LayerNorm(config.embed_dim)

    def forward(self, x_BTD: Tensor, expanding_context: bool = True) -> Tensor:
        """Returns the output, BTD."""
        h_BTD = self.attn(x_BTD, expanding_context=expanding_context)
        h_BTD = self.norm_1(x_BTD + h_BTD)
        return self.norm_2(h_BTD + self.feed(h_BTD))


class TransformerDecoderLayer(Layer):
    """Post-norm layer of self-attention, unmasked cross-attention, and feed-forward."""

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.self_attention = config.attention()
        self.cross_attention = config.attention()
        self.layer_norm_1 = nn.LayerNorm(config.embed_dim)
        self.layer_norm_2 = nn.LayerNorm(config.embed_dim)
        self.layer_norm_3 = nn.LayerNorm(config.embed_dim)

    def forward(
        self, x_BTD: Tensor, encoder_output_BSD: Tensor, expanding_context: bool = True
    ) -> Tensor:
        """Returns the output, BTD."""
        h_BTD = self.self_attention(x_BTD, expanding_context=expanding_context)
        h_BTD = self.layer_norm_1(x_BTD + h_BTD)
        h_BTD = self.layer_norm_2(h_BTD + self.cross_attention(h_BTD, encoder_output_BSD))
        return self.layer_norm_3(h_BTD + self.feed(h_BTD))
