"""The MLP of a layer, or the mixture of experts in its place."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_choices, check_counts

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "sigmoid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """The MLP of a layer; its activation and its gate are those of experts as well."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    activation: Activation = "silu"
    gated: bool = True  # down(act(gate(x)) * up(x)), not down(act(up(x)))
    bias: bool = False

    def __post_init__(self) -> None:
        check_choices(self, "mlp.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP (Shazeer et al., 2017)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    num_experts: int
    top_k: int  # experts that each token goes to
    mlp_dim: int  # of each expert
    # How logits become weights: softmax over all experts, or a sigmoid of each chosen one.
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = False  # whether the weights of the chosen sum to 1
    scale: Literal["output", "input"] = "output"  # of the experts, by those weights
    shared_mlp_dim: int | None = None  # of an expert that every token also goes to
    router_bias: bool = False
    # Tokens of a call that an expert takes, the first that chose it; an overflow expert takes the
    # others with the same weight. None: each takes all.
    capacity: int | None = None
    aux_weight: float = 0.0  # of the load-balancing loss in the training loss
    # That loss: times E, the mean of each layer's or that of all layers' tokens together; or
    # neither times E nor a mean, the sum of each layer's; or times E, that sum of the choices
    # alone that did not find their expert full, by their weights.
    balance: Literal["layer", "model", "sum", "kept"] = "layer"

    def __post_init__(self) -> None:
        check_choices(self, "experts.")
        check_counts(self, "num_experts", "top_k", "mlp_dim", "capacity", prefix="experts.")
        if self.top_k > self.num_experts:
            raise ValueError(f"experts.top_k={self.top_k} is above num_experts={self.num_experts}")
