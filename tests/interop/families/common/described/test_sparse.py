"""Experts after dense layers go both ways; other kinds of experts are refused by name."""

import pytest
from tiny import TINY

from jaxllm.config import ExpertsConfig, GroupsConfig, LayerKind, with_fields
from jaxllm.interop.families.common.described.sparse import Sparse, sparse_rules
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields

BY_BIAS = Sparse(
    fixed={"scores": "sigmoid", "correction_bias": True},
    num_experts=8,
    top_k=2,
    mlp_dim=4,
    num_shared=1,
    weight_scale=2.5,
    num_dense=1,
    normalize=True,
    groups=(4, 2),
)
BY_METHOD = Sparse(
    fixed={"scores": "softmax"},
    num_experts=8,
    top_k=None,
    mlp_dim=4,
    num_shared=2,
    weight_scale=1.0,
    num_dense=0,
    normalize=None,
    groups=(1, 1),
    methods={"greedy": None, "group_limited_greedy": "best"},
)
EXPERTS = ExpertsConfig(
    num_experts=8,
    top_k=2,
    mlp_dim=4,
    shared_mlp_dim=4,
    scores="sigmoid",
    correction_bias=True,
    normalize=True,
    weight_scale=2.5,
    groups=GroupsConfig(count=4, top_k=2, score="two_best"),
)
SPARSE = LayerKind(mlp="experts")
CONFIG = with_fields(TINY, {"pattern": (LayerKind(), SPARSE, SPARSE), "experts": EXPERTS})


def test_defaults_are_the_family_s():
    found = BY_BIAS.read(Fields({"num_hidden_layers": 3}))
    assert with_fields(TINY, found) == CONFIG


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"experts.groups": None, "experts.normalize": False, "experts.shared_mlp_dim": 12},
        {"pattern": (SPARSE,), "experts.top_k": 3},
    ],
    ids=str,
)
def test_experts_go_both_ways(changes):
    config = with_fields(CONFIG, changes)
    assert not any(BY_BIAS.unsupported(config).values())
    fields = Fields({"num_hidden_layers": 3, **BY_BIAS.write(config, {})})
    assert with_fields(TINY, BY_BIAS.read(fields)) == config
    assert not fields.problems


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_methods_of_choice_go_both_ways(method):
    given = {
        "num_hidden_layers": 3,
        "num_experts_per_tok": 2,
        "topk_method": method,
        "n_group": 4,
        "topk_group": 2,
    }
    found = BY_METHOD.read(Fields(given))
    groups = None if method == "greedy" else GroupsConfig(count=4, top_k=2)
    assert found["experts"].groups == groups
    assert BY_METHOD.write(with_fields(TINY, found), {})["topk_method"] == method


def test_an_unknown_method_is_refused():
    fields = Fields({"num_hidden_layers": 3, "num_experts_per_tok": 2, "topk_method": "noaux"})
    BY_METHOD.read(fields)
    assert any("topk_method='noaux' is not supported" in one for one in fields.problems)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts.scores": "softmax"}, "experts.scores='softmax'"),
        ({"experts.correction_bias": False}, "experts.correction_bias=False"),
        ({"experts.router_bias": True}, "experts.router_bias=True"),
        ({"experts.shared_mlp_dim": 6}, "experts.shared_mlp_dim=6, no multiple of mlp_dim"),
        ({"experts.groups.score": "best"}, "experts.groups=GroupsConfig"),
        ({"pattern": (SPARSE, LayerKind(), SPARSE)}, "dense layers after layers with experts"),
    ],
    ids=str,
)
def test_other_experts_are_refused(changes, said):
    found = [
        name for name, is_in in BY_BIAS.unsupported(with_fields(CONFIG, changes)).items() if is_in
    ]
    assert any(name.startswith(said) for name in found), found


def test_layers_without_experts_have_no_rules_of_them():
    dense = with_fields(CONFIG, {"pattern": (LayerKind(),), "experts": None})
    names = {rule.stored.name for rule in sparse_rules(dense, Layout())}
    assert not any("expert" in name for name in names)
    assert BY_BIAS.write(dense, {}) == {"first_k_dense_replace": 3}
    assert any("e_score_correction_bias" in r.stored.name for r in sparse_rules(CONFIG, Layout()))
