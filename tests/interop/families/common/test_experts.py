"""The number of experts and their storage are read under every name in use."""

import pytest

from jaxllm.interop.families.common.experts import (
    read_balance,
    read_expert_layout,
    read_num_experts,
)
from jaxllm.interop.families.common.fields import Fields


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ({}, 8),
        ({"num_experts": 5}, 5),
        ({"num_local_experts": 6}, 6),
        ({"num_experts": 5, "num_local_experts": 5}, 5),
    ],
)
def test_the_number_of_experts_is_read_under_both_names(data, count):
    fields = Fields(data)
    assert read_num_experts(fields, 8) == count
    assert not fields.finish()


def test_two_different_counts_are_a_problem():
    fields = Fields({"num_experts": 5, "num_local_experts": 6})
    read_num_experts(fields, 8)
    assert fields.problems == ["num_local_experts=6 and num_experts=5 differ"]


def test_the_layout_follows_from_the_tensor_names():
    each = ["model.layers.0.mlp.experts.0.down_proj.weight"]
    assert read_expert_layout(each).experts == "each"
    assert read_expert_layout(["model.layers.0.mlp.experts.down_proj"]).experts == "fused"


def test_the_loss_counts_only_if_router_logits_are_requested():
    weight = {"router_aux_loss_coef": 0.5}
    assert read_balance(Fields(weight))["aux_weight"] == 0
    assert read_balance(Fields({**weight, "output_router_logits": True}))["aux_weight"] == 0.5
