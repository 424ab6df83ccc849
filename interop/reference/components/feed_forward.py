"""Feed-forward networks, dense and mixture of experts, after `transformer_components.md`."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxllm.interop.reference.precision import at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class FFNConfig:
    """Settings of a feed-forward network. Raises ValueError for an invalid mixture of experts."""

    embed_dim: int
    latent_dim: int
    use_moe: bool = False
    num_experts: int | None = None
    capacity: int | None = None  # maximum number of tokens per expert and pass
    alpha: float = 0.01  # weight of the load-balancing loss
    topk: int = 1

    def __post_init__(self) -> None:
        if not self.use_moe:
            return
        if self.num_experts is None or self.capacity is None:
            raise ValueError(
                "use_moe=True needs num_experts and capacity, but num_experts="
                f"{self.num_experts}, capacity={self.capacity}"
            )
        if not 1 <= self.topk <= self.num_experts:
            raise ValueError(
                f"topk={self.topk} is not between 1 and num_experts={self.num_experts}"
            )

    def build(self) -> nn.Module:
        """Builds an `FFN` or a `MOE`."""
        if not self.use_moe:
            return FFN(self.embed_dim, self.latent_dim)
        assert self.num_experts is not None
        assert self.capacity is not None
        sizes = (self.embed_dim, self.latent_dim, self.num_experts, self.capacity)
        return MOE(*sizes, self.alpha, self.topk)


class FFN(nn.Module):
    """Feed-forward network: `layer_2(relu(layer_1 x))`."""

    def __init__(self, embed_dim: int, latent_dim: int):
        super().__init__()
        self.layer_1 = nn.Linear(embed_dim, latent_dim)
        self.layer_2 = nn.Linear(latent_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output, (..., D)."""
        return self.layer_2(functional.relu(self.layer_1(x)))


class MOE(nn.Module):
    """Mixture of experts: routes each token to `topk` of E experts, with weights that sum to one.

    The B * T tokens of a pass are flattened in order. An expert takes the first `capacity` tokens
    that chose it; the overflow expert takes the rest with the same weights. A token's output thus
    depends on the whole pass, and a cached pass equals a full one only while nothing overflows.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_latent_dim: int,
        num_experts: int,
        capacity: int,
        alpha: float = 0.01,
        topk: int = 1,
    ):
        super().__init__()
        self.capacity = capacity
        self.alpha = alpha
        self.topk = topk
        self.router = nn.Linear(embed_dim, num_experts)
        self.experts = nn.ModuleList(FFN(embed_dim, ffn_latent_dim) for _ in range(num_experts))
        self.overflow_expert = FFN(embed_dim, ffn_latent_dim)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output, BTD, and the load-balancing loss `alpha * E * sum_e f_e p_e`.

        f_e is the fraction of tokens that expert e took, p_e their mean weight. (The document
        defines both over the tokens that chose e, with p_e from the router probabilities; the
        recorded values match this definition instead.)
        """
        x_SD = x_BTD.flatten(0, 1)
        probs_SE = at_least_float32(self.router(x_SD)).softmax(-1)
        weights_Sk, chosen_Sk = probs_SE.topk(self.topk, dim=-1)
        weights_Sk = (weights_Sk / weights_Sk.sum(-1, keepdim=True)).to(x_SD.dtype)
        out_SD, balance = torch.zeros_like(x_SD), weights_Sk.new_zeros(())
        for e, expert in enumerate(self.experts):
            token, choice = (chosen_Sk == e).nonzero(as_tuple=True)
            weight = weights_Sk[token, choice, None]
            kept, spilled = token[: self.capacity], token[self.capacity :]
            y = torch.cat([expert(x_SD[kept]), self.overflow_expert(x_SD[spilled])])
            out_SD = out_SD.index_add(0, token, weight * y)
            if len(kept):
                balance = balance + len(kept) / len(x_SD) * weight[: self.capacity].mean()
        return out_SD.view_as(x_BTD), self.alpha * len(self.experts) * balance
