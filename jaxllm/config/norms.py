"""Config of a stack's norms: their kind and placement."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_fields, check_positive

# Root-mean-square norms that multiply by `scale` in the activation dtype ("rms"), by `scale` in
# float32 ("rms_float32") or by `1 + scale` in float32 ("rms_plus_one"); or layer norms with a scale
# and a bias ("layer"), with a scale alone ("layer_unbiased"), or without parameters ("layer_bare").
NormKind = Literal["rms", "rms_float32", "rms_plus_one", "layer", "layer_unbiased", "layer_bare"]
# Placement around a sublayer f, in the order of the names: x + f(norm(x)), norm(x + f(x)),
# x + norm(f(x)), x + norm(f(norm(x))), x + attn(norm(x)) + mlp(norm(x)) with a norm for each, and
# the same with one norm for both.
NormPlacement = Literal["pre", "post", "output", "sandwich", "parallel", "parallel_shared"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """The norms of the sublayers, of the embeddings and of the last hidden state."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: NormKind = "rms"
    placement: NormPlacement = "pre"
    eps: float = 1e-5
    embed: bool = False  # whether the first layer's input is normalized
    final: bool = True  # whether the last layer's output is normalized
    final_eps: float | None = None  # of the final norm; None: eps
    # Whether `tensor` splits the tokens of norms and of the residual stream, between sublayers
    # (Korthikanti et al., 2022).
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "norms.")
        check_positive(self, "eps", "final_eps", prefix="norms.")
