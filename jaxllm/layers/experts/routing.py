"""Routing: which experts each token goes to, and with which weights."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.config import ExpertsConfig, GroupsConfig

LEAST = 1e-20  # added to the sum of weights, which sigmoids could make zero


def route(
    experts: ExpertsConfig, logits_BTE: Array, bias_E: Array | None = None
) -> tuple[Array, Array, Array]:
    """Chooses the experts of each token, and weighs them.

    Args:
        experts: the config.
        logits_BTE: of the router, in float32.
        bias_E: the correction of each expert's score, for the choice alone.

    Returns:
        The router's probabilities, BTE, the weights of the chosen experts, (B, T, top_k), and
        their indices, (B, T, top_k).
    """
    probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    is_sigmoid = experts.scores == "sigmoid"
    scores_BTE = jax.nn.sigmoid(logits_BTE) if is_sigmoid else probs_BTE
    _, chosen_BTk = jax.lax.top_k(choice_scores(experts, logits_BTE, bias_E), experts.top_k)
    weights_BTk = jnp.take_along_axis(scores_BTE, chosen_BTk, axis=-1)
    if experts.normalize:
        weights_BTk /= weights_BTk.sum(-1, keepdims=True) + (LEAST if is_sigmoid else 0)
    if experts.weight_scale != 1.0:
        weights_BTk *= experts.weight_scale
    return probs_BTE, weights_BTk, chosen_BTk


def choice_scores(experts: ExpertsConfig, logits_BTE: Array, bias_E: Array | None = None) -> Array:
    """Returns the scores of which each token chooses the largest, BTE.

    They are the logits, unless a bias corrects scores or groups are chosen first; experts of other
    groups then have minus infinity (DeepSeek-AI, 2024, "DeepSeek-V3", section 2.1.2).
    """
    if bias_E is None and experts.groups is None:
        return logits_BTE
    by_sigmoid = experts.scores == "sigmoid"
    scores_BTE = jax.nn.sigmoid(logits_BTE) if by_sigmoid else jax.nn.softmax(logits_BTE, axis=-1)
    if bias_E is not None:
        scores_BTE += bias_E.astype(jnp.float32)
    if experts.groups is None:
        return scores_BTE
    return within_best_groups(experts.groups, scores_BTE)


def within_best_groups(groups: GroupsConfig, scores_BTE: Array) -> Array:
    """Replaces the scores outside of each token's best groups by minus infinity, BTE."""
    grouped = scores_BTE.reshape(*scores_BTE.shape[:-1], groups.count, -1)
    best = jax.lax.top_k(grouped, 2 if groups.score == "two_best" else 1)[0].sum(-1)
    _, chosen = jax.lax.top_k(best, groups.top_k)
    is_chosen = jax.nn.one_hot(chosen, groups.count, dtype=bool).any(-2)
    return jnp.where(is_chosen[..., None], grouped, -jnp.inf).reshape(scores_BTE.shape)
