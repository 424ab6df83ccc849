"""Config of a layer's MLP, and of the mixture of experts that may replace it."""

import dataclasses
from typing import ClassVar, Literal

from .checks import check_counts, check_fields, check_positive

# "gelu" is exact, "gelu_tanh" the approximation by tanh.
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "sigmoid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClampConfig:
    """Clamped gate of gpt-oss (OpenAI, 2025), in place of `silu(gate) * up`.

    With `g = min(gate, limit)` and `u = min(max(up, -limit), limit)`, it computes
    `g * sigmoid(alpha * g) * (u + 1)`.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    limit: float = 7.0
    alpha: float = 1.702

    def __post_init__(self) -> None:
        check_fields(self, "mlp.clamp.")
        check_positive(self, "limit", "alpha", prefix="mlp.clamp.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """The MLP of a layer. Activation, gate and bias apply to each expert of a mixture too."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    activation: Activation = "silu"
    gated: bool = True  # down(act(gate(x)) * up(x)); otherwise down(act(up(x)))
    bias: bool = False
    clamp: ClampConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self, "mlp.")
        if self.clamp is not None and (self.activation, self.gated) != ("silu", True):
            raise ValueError(
                f"mlp.clamp with mlp.activation={self.activation!r} and mlp.gated={self.gated}: "
                "a clamped gate has activation 'silu' and gated=True"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """Groups of consecutive experts, a few of which each token may choose from (DeepSeek-V2)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    count: int
    top_k: int  # groups of each token: those of the best scores
    # The score of a group: that of its best expert, or the sum of those of its two best.
    score: Literal["best", "two_best"] = "best"

    def __post_init__(self) -> None:
        check_fields(self, "experts.groups.")
        check_counts(self, "count", "top_k", prefix="experts.groups.")
        if self.top_k > self.count:
            raise ValueError(f"experts.groups.top_k={self.top_k} is above count={self.count}")

    def check_experts(self, num_experts: int, top_k: int) -> None:
        """Raises ValueError if so many experts cannot be grouped, or not chosen from."""
        each = num_experts // self.count
        if num_experts % self.count or (self.score == "two_best" and each < 2):
            raise ValueError(
                f"experts.groups.count={self.count} with num_experts={num_experts}: groups are of "
                "equal sizes, and of 2 or more experts if score='two_best'"
            )
        if top_k > self.top_k * each:
            raise ValueError(
                f"experts.top_k={top_k} is above the {self.top_k * each} experts of "
                f"experts.groups.top_k={self.top_k} groups"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts in place of the MLP (Shazeer et al., 2017)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    num_experts: int
    top_k: int  # experts chosen for each token
    mlp_dim: int  # of each expert
    # How router logits become weights: softmax over all experts, or a sigmoid of each chosen one.
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = False  # whether the weights of the chosen experts are scaled to sum to 1
    weight_scale: float = 1.0  # factor of the weights, after that
    groups: GroupsConfig | None = None
    # Whether each expert has a bias that is added to its score when experts are chosen, but not to
    # its weight (Wang et al., 2024). It gets no gradient.
    correction_bias: bool = False
    router_in_float32: bool = False  # whether router logits are not rounded to the activations'
    scale: Literal["output", "input"] = "output"  # which side of an expert its weight multiplies
    shared_mlp_dim: int | None = None  # of a shared expert that every token goes to as well
    # Whether the shared expert's output is multiplied by the sigmoid of a linear map of the token.
    shared_gate: bool = False
    router_bias: bool = False
    # Most tokens that an expert takes in one call of the model: first come first served, row after
    # row. One overflow expert takes the rest, with the same weights. So the rows of a batch change
    # each other, and a sequence is computed alone and in one call, never token by token with a
    # cache. None: no limit.
    capacity: int | None = None
    aux_weight: float = 0.0  # weight of the load-balancing loss in the training loss
    # Load-balancing loss. "layer": E times the mean of the layers' losses. "model": E times the
    # loss over the tokens of all layers together. "sum": the sum of the layers' losses, without E.
    # "kept": E times that sum, over choices whose expert was not full, with their router weights.
    balance: Literal["layer", "model", "sum", "kept"] = "layer"

    def __post_init__(self) -> None:
        check_fields(self, "experts.")
        check_counts(self, "num_experts", "top_k", "mlp_dim", "capacity", prefix="experts.")
        check_positive(self, "weight_scale", prefix="experts.")
        if self.groups is not None:
            self.groups.check_experts(self.num_experts, self.top_k)
        if self.shared_gate and self.shared_mlp_dim is None:
            raise ValueError("experts.shared_gate=True, but experts.shared_mlp_dim is None")
        if self.top_k > self.num_experts:
            raise ValueError(f"experts.top_k={self.top_k} is above num_experts={self.num_experts}")
