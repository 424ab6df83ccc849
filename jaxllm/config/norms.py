"""The norms of a stack: which kind, and where they stand."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_choices, check_positive

# The root-mean-square norm, its scale applied in the activations' dtype, in float32, or in float32
# after adding one to it; and the layer norm, which has a bias as well.
NormKind = Literal["rms", "rms_float32", "rms_plus_one", "layer"]
# Where a layer's norms stand around a sublayer f: x + f(norm(x)), norm(x + f(x)), x + norm(f(x)),
# x + norm(f(norm(x))), or x + attn(norm(x)) + mlp(norm(x)).
NormPlacement = Literal["pre", "post", "output", "sandwich", "parallel"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """The norms around every sublayer, of the embeddings and of the last hidden state."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: NormKind = "rms"
    placement: NormPlacement = "pre"
    eps: float = 1e-5
    embed: bool = False  # whether the input of the first layer is normalized
    final: bool = True  # whether the output of the last layer is
    final_eps: float | None = None  # None: eps

    def __post_init__(self) -> None:
        check_choices(self, "norms.")
        check_positive(self, "eps", "final_eps", prefix="norms.")
