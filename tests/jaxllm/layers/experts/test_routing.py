"""Routing with corrections and groups equals its definition, written out token by token."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import ExpertsConfig, GroupsConfig
from jaxllm.layers.experts.routing import choice_scores, route, within_best_groups

E, TOP_K = 8, 3
RNG = np.random.default_rng(0)
LOGITS_BTE = RNG.standard_normal((2, 9, E)).astype(np.float32)
BIAS_E = RNG.standard_normal(E).astype(np.float32)
CASES = {
    "sigmoid, corrected, two best of each group": {
        "scores": "sigmoid",
        "normalize": True,
        "weight_scale": 2.5,
        "correction_bias": True,
        "groups": GroupsConfig(count=4, top_k=2, score="two_best"),
    },
    "softmax, best of each group": {
        "groups": GroupsConfig(count=4, top_k=2),
        "weight_scale": 16.0,
    },
    "sigmoid, corrected": {"scores": "sigmoid", "correction_bias": True},
}


def by_hand(experts: ExpertsConfig, logits_E: np.ndarray, bias_E) -> dict[int, float]:
    """Returns the weight of each chosen expert of one token, in float64."""
    logits_E = logits_E.astype(np.float64)
    exp_E = np.exp(logits_E)
    scores_E = 1 / (1 + 1 / exp_E) if experts.scores == "sigmoid" else exp_E / exp_E.sum()
    corrected_E = scores_E + (0 if bias_E is None else bias_E)
    allowed = set(range(E))
    if experts.groups is not None:
        members = np.arange(E).reshape(experts.groups.count, -1)
        most = 2 if experts.groups.score == "two_best" else 1
        value = [np.sort(corrected_E[own])[-most:].sum() for own in members]
        best = np.argsort(value)[-experts.groups.top_k :]
        allowed = {int(e) for g in best for e in members[g]}
    chosen = sorted(allowed, key=lambda e: -corrected_E[e])[: experts.top_k]
    total = sum(scores_E[e] for e in chosen) if experts.normalize else 1
    return {e: scores_E[e] / total * experts.weight_scale for e in chosen}


@pytest.mark.parametrize("name", CASES)
def test_experts_and_weights_are_those_of_the_definition(name):
    experts = ExpertsConfig(num_experts=E, top_k=TOP_K, mlp_dim=4, **CASES[name])
    bias_E = BIAS_E if experts.correction_bias else None
    given = jnp.asarray(LOGITS_BTE), None if bias_E is None else jnp.asarray(bias_E)
    _, weights, chosen = map(np.asarray, route(experts, *given))
    for row in range(2):
        for t in range(9):
            expected = by_hand(experts, LOGITS_BTE[row, t], bias_E)
            found = dict(zip(chosen[row, t].tolist(), weights[row, t].tolist(), strict=True))
            assert found.keys() == expected.keys()
            assert found == pytest.approx(expected, rel=1e-5)


def test_logits_are_what_is_chosen_by_without_corrections_and_groups():
    experts = ExpertsConfig(num_experts=E, top_k=TOP_K, mlp_dim=4, scores="sigmoid")
    assert choice_scores(experts, LOGITS_BTE) is LOGITS_BTE


def test_only_the_best_groups_keep_their_scores():
    scores = jnp.asarray([[[3.0, 0.0, 2.0, 2.0, 1.0, 1.0]]])
    by_best = within_best_groups(GroupsConfig(count=3, top_k=1), scores)
    by_two = within_best_groups(GroupsConfig(count=3, top_k=1, score="two_best"), scores)
    inf = np.inf
    np.testing.assert_array_equal(by_best, [[[3, 0, -inf, -inf, -inf, -inf]]])
    np.testing.assert_array_equal(by_two, [[[-inf, -inf, 2, 2, -inf, -inf]]])


def test_weights_of_sigmoids_that_vanish_are_numbers():
    experts = ExpertsConfig(num_experts=E, top_k=2, mlp_dim=4, scores="sigmoid", normalize=True)
    _, weights, _ = route(experts, jnp.full((1, 1, E), -200.0))
    np.testing.assert_array_equal(weights, 0)
