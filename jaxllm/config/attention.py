"""Attention: what queries see, and what happens to scores."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_choices, check_positive

# Which queries and keys are normalized: those of each head on its own, or of all heads of a token
# together, before RoPE; or those of each head, without a learned scale, after RoPE, on the layers
# that have RoPE.
QKNorm = Literal["none", "head", "full", "after_rope"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temperature:
    """Queries grow with their position p, by `1 + scale * ln(1 + floor((p + 1) / floor_scale))`.

    On the layers without RoPE, which have nothing else to tell near from far (Llama 4).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    scale: float = 0.1
    floor_scale: float = 8192.0

    def __post_init__(self) -> None:
        check_positive(self, "floor_scale", prefix="attention.temperature.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Attention of every layer, to the stack's own tokens and to those of an encoder."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    causal: bool = True  # tokens do not see the tokens after them
    cross: bool = False  # every layer also attends to an encoder's output
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QKNorm = "none"
    scale: float | None = None  # of scores; None: 1 / sqrt(head_dim)
    softcap: float | None = None  # scores become cap * tanh(score / cap)
    temperature: Temperature | None = None
    window: int | None = None  # tokens seen on layers of sees="window", the query's own included
    chunk: int | None = None  # on layers of sees="chunk", tokens see their own chunk of this many

    def __post_init__(self) -> None:
        check_choices(self, "attention.")
        check_positive(self, "scale", "softcap", "window", "chunk", prefix="attention.")
