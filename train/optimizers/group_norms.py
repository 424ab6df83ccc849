"""Norms of the gradients of each kind of parameter: attention, MLP, norms, embeddings, head."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# The group of a parameter is that of the first of these in one of the parts of its name.
_GROUPS = {
    "vision": "vision",
    "norm": "norms",
    "attn": "attention",
    "router": "router",
    "mlp": "mlp",
    "head": "head",
    "output_proj": "head",
    "embed": "embeddings",
    "input_proj": "embeddings",
    "source_proj": "embeddings",
}


def group_norms(gradients: Any) -> dict[str, Array]:
    """Returns the norm of the gradients of each group of parameters, by `grad_norm/GROUP`.

    The squares of the parts add up to that of the whole. In a jitted step the sums are those of
    the whole norm, so they cost nothing.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(gradients)
    squares: dict[str, Array] = {}
    for path, gradient in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        own = jnp.sum(jnp.square(gradient))
        group = group_of(name)
        squares[group] = own if group not in squares else squares[group] + own
    return {f"grad_norm/{group}": jnp.sqrt(total) for group, total in sorted(squares.items())}


def group_of(name: str) -> str:
    """Returns the group of a parameter by its dotted name."""
    return next((group for part, group in _GROUPS.items() if part in name), "other")
