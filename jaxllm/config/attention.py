"""Attention config: masks, QK norm, biases, and scaling of queries and scores."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_counts, check_fields, check_positive

# Normalization of queries and keys. "head": per head, before RoPE. "full": over all heads of a
# token together, before RoPE. "after_rope": per head and without a learned scale, after RoPE, on
# layers with RoPE only. "each_head": per head, with a scale of its own for each, as layer norm
# without bias, before RoPE.
QKNorm = Literal["none", "head", "full", "after_rope", "each_head"]
# How self-attention is computed. "blocks": by matmuls, in blocks of queries. "splash": the kernel
# for TPUs. "triton": the kernel for GPUs. "auto": the kernel of the devices, if they have one that
# computes what the model asks for.
AttentionKernel = Literal["auto", "blocks", "splash", "triton"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """Position-dependent attention temperature (Llama 4).

    Multiplies the query at position p by `1 + scale * ln(1 + floor((p + offset) / floor_scale))`.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    scale: float = 0.1
    floor_scale: float = 8192.0
    offset: int = 1
    # On which layers: those without RoPE, which have no other information on positions, or all.
    layers: Literal["without_rope", "all"] = "without_rope"

    def __post_init__(self) -> None:
        check_fields(self, "attention.temperature.")
        check_positive(self, "floor_scale", prefix="attention.temperature.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-AI, 2024): see `LatentAttention`.

    Of each head of queries and keys, which has `head_dim` elements, the last `rope_dim` are
    rotated; for keys they are the same in all heads.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kv_rank: int  # width of the latent that keys and values are computed from
    query_rank: int | None = None  # width of the queries' latent; None: they have none
    rope_dim: int
    value_dim: int  # elements of a head's values
    norm_eps: float = 1e-6  # of the norms of the latents

    def __post_init__(self) -> None:
        prefix = "attention.latent."
        check_fields(self, prefix)
        check_counts(self, "kv_rank", "query_rank", "rope_dim", "value_dim", prefix=prefix)
        check_positive(self, "norm_eps", prefix=prefix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """Gated DeltaNet (Yang et al., 2024), in place of attention: see `GatedDeltaNet`.

    Each head of queries and keys serves `num_heads / num_key_heads` consecutive heads of values.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    num_heads: int  # of values, each with a state of its own
    num_key_heads: int  # of queries and keys
    key_dim: int  # elements of a head's queries and keys
    value_dim: int  # elements of a head's values
    conv_size: int = 4  # tokens that the convolution of queries, keys and values spans

    def __post_init__(self) -> None:
        prefix = "attention.delta."
        check_fields(self, prefix)
        names = ("num_heads", "num_key_heads", "key_dim", "value_dim", "conv_size")
        check_counts(self, *names, prefix=prefix)
        if self.num_heads % self.num_key_heads:
            raise ValueError(
                f"attention.delta.num_heads={self.num_heads} is not a multiple of "
                f"num_key_heads={self.num_key_heads}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Self-attention and cross-attention of every layer of a stack."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    causal: bool = True  # whether tokens see no later tokens
    cross: bool = False  # whether every layer also attends to an encoder's output
    qkv_bias: bool = False  # of latent attention: of the projections to latents
    out_bias: bool = False
    qk_norm: QKNorm = "none"
    scale: float | None = None  # factor of the scores; None: 1 / sqrt(head_dim)
    scale_by_depth: bool = False  # whether layer i, from 1 on, also divides the scores by i
    softcap: float | None = None  # scores become cap * tanh(score / cap)
    temperature: TemperatureConfig | None = None
    # Whether each head has a learned score of one more key, whose value is zero (gpt-oss, after
    # Xiao et al., 2023): the probabilities of the other keys then sum to less than 1.
    sinks: bool = False
    # Whether each element of a head's output is multiplied by the sigmoid of a linear map of the
    # token (Qiu et al., 2025).
    gated: bool = False
    latent: LatentConfig | None = None
    # Tokens that a query attends to, its own included, on layers of kind attention="window".
    window: int | None = None
    # Tokens per chunk on layers of kind attention="chunk"; a query attends to its own chunk.
    chunk: int | None = None
    delta: DeltaConfig | None = None  # of layers of kind attention="delta", which have no scores
    kernel: AttentionKernel = "auto"  # how self-attention is computed, without a cache

    def __post_init__(self) -> None:
        check_fields(self, "attention.")
        check_positive(self, "scale", "softcap", "window", "chunk", prefix="attention.")
        self._check_latent()
        self._check_delta()

    def _check_latent(self) -> None:
        """Raises ValueError for what latent attention is not combined with."""
        given = {
            f"qk_norm={self.qk_norm!r}": self.qk_norm != "none",
            "cross=True": self.cross,
            "sinks=True": self.sinks,
            "gated=True": self.gated,
            f"delta={self.delta}": self.delta is not None,
            "scale_by_depth=True": self.scale_by_depth,
            f"temperature={self.temperature}": self.temperature is not None,
            f"window={self.window}": self.window is not None,
            f"chunk={self.chunk}": self.chunk is not None,
        }
        if self.latent is not None and (others := [name for name, is_on in given.items() if is_on]):
            raise ValueError(f"attention.latent excludes attention.{', attention.'.join(others)}")

    def _check_delta(self) -> None:
        """Raises ValueError for what a recurrent state is not combined with."""
        given = {"causal=False": not self.causal, "cross=True": self.cross}
        if self.delta is not None and (others := [name for name, is_on in given.items() if is_on]):
            raise ValueError(
                f"attention.delta excludes attention.{', attention.'.join(others)}: its state goes "
                "from each token to the next of one text"
            )
