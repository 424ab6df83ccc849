"""Mixture of experts of `LLM`, the same as Llama 4's (`interop.md` 4.8 and 4.9)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxllm.interop.reference.precision import at_least_float32

from .arguments import MoEArgs
from .checkpoint import rename


class Experts(nn.Module):
    """E SwiGLU experts in parallel: `(silu(x w1) * (x w3)) w2`, each with its own input rows."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int):
        super().__init__()
        self.shape = (num_experts, dim, hidden_dim)
        self.w1 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.w3 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        for weight in (self.w1, self.w2, self.w3):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        self.register_load_state_dict_pre_hook(Experts.load_hook)

    def load_hook(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Converts the released format, which stacks the experts along the rows."""
        released = {"moe_w_in_eD_F": "w1", "moe_w_out_eF_D": "w2", "moe_w_swiglu_eD_F": "w3"}
        for old in released:
            if (stacked := state_dict.get(prefix + old)) is not None and stacked.dim() == 2:
                state_dict[prefix + old] = stacked.unflatten(0, (self.shape[0], -1))
        rename(state_dict, prefix, released)

    def forward(self, x_ESD: Tensor) -> Tensor:
        """Returns the output, ESD; S counts tokens."""
        gate_ESF = functional.silu(torch.einsum("ESD,EDF->ESF", x_ESD, self.w1))
        value_ESF = torch.einsum("ESD,EDF->ESF", x_ESD, self.w3)
        return torch.einsum("ESF,EFD->ESD", gate_ESF * value_ESF, self.w2)


class SharedExpert(nn.Module):
    """SwiGLU applied to every token, as wide as one expert, with Meta's tensor names."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x_SD: Tensor) -> Tensor:
        """Returns the output, SD."""
        return self.w2(functional.silu(self.w1(x_SD)) * self.w3(x_SD))


class MoE(nn.Module):
    """Mixture of experts: `shared(x) + sum over the chosen experts e of f_e(sigmoid(l_e) x)`.

    The weights scale the experts' inputs and are not normalized; no token is dropped. Every expert
    runs on every token; where it was not chosen, its input is zero, and so is its output.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        ffn_dim_multiplier: float | None,
        multiple_of: int,
        moe_args: MoEArgs,
    ):
        super().__init__()
        hidden_dim = int(2 * hidden_dim / 3)
        if ffn_dim_multiplier is not None:
            hidden_dim = int(ffn_dim_multiplier * hidden_dim)
        if moe_args.auto_scale_F:
            hidden_dim = int(hidden_dim / (moe_args.capacity_factor + 1))
        hidden_dim += -hidden_dim % multiple_of
        self.top_k = moe_args.top_k
        self.router_DE = nn.Parameter(torch.randn(dim, moe_args.num_experts) * dim**-0.5)
        self.experts = Experts(moe_args.num_experts, dim, hidden_dim)
        self.shared_expert = SharedExpert(dim, hidden_dim)
        self.register_load_state_dict_pre_hook(MoE.load_hook)

    def load_hook(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Converts the released format and drops the statistics of training stored in it."""
        released = {"w_in_shared_FD": "w1", "w_swiglu_FD": "w3", "w_out_shared_DF": "w2"}
        rename(
            state_dict,
            prefix,
            {f"{old}.weight": f"shared_expert.{new}.weight" for old, new in released.items()},
        )
        for name in ("running_gate_stats_3E", "global_gate_stats_3E", "expert_activation_DE"):
            state_dict.pop(prefix + name, None)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the output, BTD."""
        x_SD = x_BTD.flatten(0, 1)
        logits_SE = x_SD @ self.router_DE
        best_Sk, chosen_Sk = logits_SE.topk(self.top_k, dim=-1)
        weights_Sk = at_least_float32(best_Sk).sigmoid().to(x_SD.dtype)
        weights_SE = torch.zeros_like(logits_SE).scatter(-1, chosen_Sk, weights_Sk)
        routed_ESD = torch.einsum("SE,SD->ESD", weights_SE, x_SD)
        out_SD = self.shared_expert(x_SD) + self.experts(routed_ESD).sum(0)
        return out_SD.view_as(x_BTD)
