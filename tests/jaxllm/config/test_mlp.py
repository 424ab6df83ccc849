"""Invalid MLP and expert configs are rejected by full field name."""

import pytest

from jaxllm.config import ClampConfig, ExpertsConfig, GroupsConfig, MlpConfig


def test_invalid_mlp_is_rejected():
    with pytest.raises(ValueError, match=r"mlp\.activation='tanh' is not one of silu, gelu"):
        MlpConfig(activation="tanh")
    with pytest.raises(ValueError, match=r"mlp\.clamp\.limit=0\.0 is not positive"):
        ClampConfig(limit=0.0)


@pytest.mark.parametrize("changes", [{"activation": "gelu"}, {"gated": False}], ids=str)
def test_only_a_gate_with_silu_is_clamped(changes):
    with pytest.raises(ValueError, match="a clamped gate has activation 'silu' and gated=True"):
        MlpConfig(clamp=ClampConfig(), **changes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shared_gate": True}, ["shared_gate=True", "shared_mlp_dim is None"]),
        ({"num_experts": 0}, ["experts.num_experts=0"]),
        ({"top_k": 0}, ["experts.top_k=0"]),
        ({"top_k": 5}, ["top_k=5", "num_experts=4"]),
        ({"mlp_dim": 0}, ["experts.mlp_dim=0"]),
        ({"capacity": 0}, ["experts.capacity=0"]),
        ({"scores": "tanh"}, ["scores='tanh'", "softmax", "sigmoid"]),
        ({"scale": "both"}, ["scale='both'", "output", "input"]),
        ({"weight_scale": 0.0}, ["experts.weight_scale=0.0"]),
        ({"groups": GroupsConfig(count=3, top_k=1)}, ["experts.groups.count=3", "num_experts=4"]),
        (
            {"groups": GroupsConfig(count=4, top_k=2, score="two_best")},
            ["experts.groups.count=4", "2 or more"],
        ),
        ({"groups": GroupsConfig(count=4, top_k=1)}, ["experts.top_k=2", "above the 1 experts"]),
        ({"balance": "batch"}, ["balance='batch'", "layer", "model", "kept"]),
    ],
    ids=str,
)
def test_invalid_experts_are_rejected_with_field_name_and_value(fields, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        ExpertsConfig(**{"num_experts": 4, "top_k": 2, "mlp_dim": 8, **fields})
    assert all(part in str(caught.value) for part in said), caught.value


def test_more_groups_than_there_are_cannot_be_chosen():
    with pytest.raises(ValueError, match=r"experts\.groups\.top_k=3 is above count=2"):
        GroupsConfig(count=2, top_k=3)
