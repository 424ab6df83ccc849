"""Muon (Jordan, 2024): momentum whose matrices are orthogonalized, each layer's by itself."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .matrices import Shape

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as in Jordan's Muon
ITERATIONS = 5
SMALLEST_NORM = 1e-7


class MuonState(NamedTuple):
    """The momentum of each matrix."""

    mu: Any


def scale_by_muon(shapes: Any, momentum: float, nesterov: bool) -> optax.GradientTransformation:
    """Returns orthogonalized momentum, with the root mean square of an update by AdamW.

    That is PyTorch's `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` (Liu et al., 2025), so
    that one learning rate suits both; but in float32, where PyTorch iterates in bfloat16.

    Args:
        shapes: a tree like the parameters, with the `Shape` of each.
        momentum: the decay of the running mean of gradients.
        nesterov: whether to look ahead by one step.
    """

    def mean(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, old, new)

    def update(updates: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        mu = mean(state.mu, updates)
        ahead = mean(mu, updates) if nesterov else mu
        return jax.tree.map(_orthogonal, ahead, shapes), MuonState(mu)

    return optax.GradientTransformation(
        lambda params: MuonState(jax.tree.map(jnp.zeros_like, params)), update
    )


def _orthogonal(x: Array, shape: Shape) -> Array:
    """Orthogonalizes the matrices of an array by a Newton-Schulz iteration."""
    order = [place for place in range(x.ndim) if place not in shape.own]
    order += [*shape.rows, *shape.columns]
    rows, columns = (math.prod(x.shape[place] for place in part) for part in shape[:2])
    moved = x.transpose(order)
    found = newton_schulz(moved.reshape(-1, rows, columns))
    back = found.reshape(moved.shape).transpose([order.index(place) for place in range(x.ndim)])
    return 0.2 * math.sqrt(max(rows, columns)) * back


def newton_schulz(x: Array) -> Array:
    """Moves the singular values of each matrix in a stack near 1."""
    if x.shape[-2] > x.shape[-1]:
        return newton_schulz(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    a, b, c = COEFFICIENTS
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(-2, -1), keepdims=True), SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
