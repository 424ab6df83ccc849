"""Attention, feed-forward networks and layers of nima, with every switch of `nima.md`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxllm.interop.reference.attention import Attend
from jaxllm.interop.reference.positions import apply_rope, compute_freqs_cis
from jaxllm.interop.reference.precision import at_least_float32

FeedForwardKind = Literal["ffn", "glu", "swiglu"]
# "learned" and "sinusoidal" are added to the embeddings, the others applied in self-attention.
PositionKind = Literal["learned", "sinusoidal", "rope", "alibi", "relative"]
NormPlacement = Literal["post", "pre"]

EPS = 1e-6  # of the norms inside layers


def check_choice(name: str, given: object, kind: object) -> None:
    """Raises ValueError if `given` is not among the values of the Literal type `kind`."""
    if given not in (allowed := get_args(kind)):
        raise ValueError(f"{name}={given!r} is not one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Sizes and switches of every layer. Raises ValueError if they are inconsistent."""

    d_model: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 512
    dropout: float = 0.1
    feed_forward: FeedForwardKind = "ffn"
    position: PositionKind
    norm: NormPlacement = "post"

    def __post_init__(self) -> None:
        check_choice("feed_forward", self.feed_forward, FeedForwardKind)
        check_choice("position", self.position, PositionKind)
        check_choice("norm", self.norm, NormPlacement)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}")
        if self.position == "rope" and (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"position='rope' rotates pairs, but the head width d_model={self.d_model} / "
                f"n_heads={self.n_heads} is odd"
            )


class MultiHeadAttention(nn.Module):
    """Multi-head attention with biases and, in self-attention, optional positions."""

    def __init__(self, config: LayerConfig, position: PositionKind | None = None):
        super().__init__()
        D = config.d_model
        self.n_heads = config.n_heads
        self.position = position
        self.max_seq_len = config.max_seq_len
        self.w_q = nn.Linear(D, D)
        self.w_k = nn.Linear(D, D)
        self.w_v = nn.Linear(D, D)
        self.w_o = nn.Linear(D, D)
        self.attend = Attend()
        if position == "relative":
            # One bias per head and distance, from the farthest key behind to the farthest ahead.
            self.relative_bias = nn.Embedding(2 * config.max_seq_len - 1, config.n_heads)

    def forward(self, x_BTD: Tensor, memory_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """Attends from `x` to the memory: BTD. The mask is TS or BTS, True where visible."""
        q_BTNH = self.w_q(x_BTD).unflatten(-1, (self.n_heads, -1))
        k_BSNH = self.w_k(memory_BSD).unflatten(-1, (self.n_heads, -1))
        v_BSNH = self.w_v(memory_BSD).unflatten(-1, (self.n_heads, -1))
        if self.position == "rope":
            q_BTNH, k_BSNH = rotate(q_BTNH, k_BSNH)
        bias_NTS = self.bias(x_BTD.shape[1], x_BTD.dtype)
        out_BTNH = self.attend(q_BTNH, k_BSNH, v_BSNH, mask, bias_NTS)
        return self.w_o(out_BTNH.flatten(-2))

    def bias(self, T: int, dtype: torch.dtype) -> Tensor | None:
        """Returns the position bias of the scores, NTS with S = T, or None."""
        ahead_TS = torch.arange(T) - torch.arange(T)[:, None]
        if self.position == "alibi":
            slopes_N = alibi_slopes(self.n_heads, torch.promote_types(dtype, torch.float32))
            return -slopes_N[:, None, None] * ahead_TS.abs()
        if self.position == "relative":
            return at_least_float32(self.relative_bias(ahead_TS + self.max_seq_len - 1)).movedim(
                -1, 0
            )
        return None


def rotate(q_BTNH: Tensor, k_BTNH: Tensor) -> tuple[Tensor, Tensor]:
    """Applies RoPE with theta 10000 to adjacent elements."""
    _, T, _, H = q_BTNH.shape
    dtype = torch.promote_types(q_BTNH.dtype, torch.float32)
    return apply_rope(q_BTNH, k_BTNH, compute_freqs_cis(H, T, dtype=dtype))


def alibi_slopes(n_heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the ALiBi slope of each head (Press et al., 2022): `2 ** (-8 (n + 1) / N)`, shape N.

    If N is not a power of two: the slopes for the next lower power, then every other one of those
    for the next higher power.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = 2.0 ** (-8 * torch.arange(1, power + 1, dtype=dtype) / power)
    between = 2.0 ** (-8 * torch.arange(1, 2 * power, 2, dtype=dtype) / (2 * power))
    return torch.cat([slopes, between])[:n_heads]


class FeedForward(nn.Module):
    """Feed-forward network: `linear2(relu(linear1 x))`."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.linear1 = nn.Linear(config.d_model, config.d_ff)
        self.linear2 = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the output, BTD."""
        return self.linear2(functional.relu(self.linear1(x_BTD)))


GATES: dict[str, Callable[[Tensor], Tensor]] = {"glu": torch.sigmoid, "swiglu": functional.silu}


class GatedFeedForward(nn.Module):
    """Gated feed-forward network (Shazeer, 2020): `linear2(act(gate x) * linear1 x)`.

    The activation is a sigmoid for GLU and silu for SwiGLU.
    """

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.activation = GATES[config.feed_forward]
        self.gate = nn.Linear(config.d_model, config.d_ff)
        self.linear1 = nn.Linear(config.d_model, config.d_ff)
        self.linear2 = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the output, BTD."""
        return self.linear2(self.activation(self.gate(x_BTD)) * self.linear1(x_BTD))


class Layer(nn.Module):
    """Base class of encoder and decoder layers."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        is_gated = config.feed_forward in GATES
        self.is_pre_norm = config.norm == "pre"
        self.self_attention = MultiHeadAttention(config, config.position)
        self.feed_forward = GatedFeedForward(config) if is_gated else FeedForward(config)
        self.norm1 = nn.LayerNorm(config.d_model, EPS)
        self.norm2 = nn.LayerNorm(config.d_model, EPS)
        self.dropout = nn.Dropout(config.dropout)

    def residual(
        self, norm: nn.Module, sublayer: Callable[[Tensor], Tensor], x_BTD: Tensor
    ) -> Tensor:
        """Returns `norm(x + sublayer(x))`, or pre-norm `x + sublayer(norm(x))`."""
        if self.is_pre_norm:
            return x_BTD + self.dropout(sublayer(norm(x_BTD)))
        return norm(x_BTD + self.dropout(sublayer(x_BTD)))


class EncoderLayer(Layer):
    """Self-attention and feed-forward; with a causal mask, the layer of `GPTModel`."""

    def forward(self, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the output, BTD."""
        x_BTD = self.residual(self.norm1, lambda x: self.self_attention(x, x, mask), x_BTD)
        return self.residual(self.norm2, self.feed_forward, x_BTD)


class DecoderLayer(Layer):
    """Self-attention, cross-attention to the encoder's output, and feed-forward."""

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.cross_attention = MultiHeadAttention(config)
        self.norm3 = nn.LayerNorm(config.d_model, EPS)

    def forward(
        self, x_BTD: Tensor, mask: Tensor | None, memory_BSD: Tensor, memory_mask: Tensor | None
    ) -> Tensor:
        """Returns the output, BTD."""
        x_BTD = self.residual(self.norm1, lambda x: self.self_attention(x, x, mask), x_BTD)
        x_BTD = self.residual(
            self.norm2, lambda x: self.cross_attention(x, memory_BSD, memory_mask), x_BTD
        )
        return self.residual(self.norm3, self.feed_forward, x_BTD)
