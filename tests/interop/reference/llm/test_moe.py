"""The experts of `LLM`: each token's sum by hand, widths, and the released spelling."""

import pytest
import torch
from float64 import assert_close, normal
from torch.nn import functional

from jaxllm.interop.reference.llm.arguments import MoEArgs
from jaxllm.interop.reference.llm.moe import Experts, MoE


def test_experts_scale_their_input_by_a_sigmoid_of_their_own(draw):
    moe = draw(MoE(16, 48, None, 8, MoEArgs(num_experts=5, top_k=3)))
    x = normal(2, 7, 16)
    expected = torch.empty_like(x)
    for b, t in ((b, t) for b in range(2) for t in range(7)):
        scores = x[b, t] @ moe.router_DE
        expected[b, t] = moe.shared_expert(x[b, t])
        for e in scores.argsort(descending=True)[:3].tolist():
            u = x[b, t] * scores[e].sigmoid()
            inner = functional.silu(u @ moe.experts.w1[e]) * (u @ moe.experts.w3[e])
            expected[b, t] += inner @ moe.experts.w2[e]
    assert_close(moe(x), expected.detach())


def test_experts_map_zeros_to_zeros(draw):
    """So that one that was not chosen adds nothing."""
    experts = draw(Experts(3, 8, 12))
    x_ESD = normal(3, 4, 8)
    x_ESD[1] = 0
    out_ESD = experts(x_ESD)
    assert not out_ESD[1].any()
    assert out_ESD[0].all()


@pytest.mark.parametrize(
    ("args", "width"),
    [
        (MoEArgs(num_experts=2), 8192),
        (MoEArgs(num_experts=2, auto_scale_F=False), 16384),
        (MoEArgs(num_experts=2, capacity_factor=3.0), 4096),
    ],
)
def test_widths_are_those_of_the_released_models(args, width):
    """An active token costs what a dense block costs, unless it is said not to."""
    with torch.device("meta"):
        moe = MoE(5120, 4 * 5120, 1.2, 2048, args)
    assert moe.experts.w2.shape == (2, width, 5120)
    assert moe.shared_expert.w1.out_features == width


def test_the_released_spelling_loads_strictly(draw):
    """Stacked rows are cut into experts, and statistics of training are dropped."""
    moe, again = (draw(MoE(16, 48, None, 8, MoEArgs(num_experts=3)), seed=i) for i in (0, 1))
    state = dict(moe.state_dict())
    for ours, theirs in {"w1": "moe_w_in_eD_F", "w2": "moe_w_out_eF_D"}.items():
        state[f"experts.{theirs}"] = state.pop(f"experts.{ours}").flatten(0, 1)
    state["experts.moe_w_swiglu_eD_F"] = state.pop("experts.w3").flatten(0, 1)
    state["w_in_shared_FD.weight"] = state.pop("shared_expert.w1.weight")
    state["running_gate_stats_3E"] = torch.zeros(3, 3)
    x = normal(2, 5, 16)
    assert not torch.equal(again(x), moe(x))
    again.load_state_dict(state)
    assert torch.equal(again(x), moe(x))
