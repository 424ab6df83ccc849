"""Steps whose gradient is not finite or far larger than before: they leave everything as it was."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

RECENT = 0.99  # decay of the mean of the gradient norm: about the last 100 steps
WARM_UP = 20  # steps before a norm can be a spike, since its mean is unknown


class GuardState(NamedTuple):
    """The optimizer's state, and the mean of the norms of good steps."""

    inner: Any
    mean_norm: Array
    good_steps: Array
    is_bad: Array  # whether the last step was one


def with_guard(
    inner: optax.GradientTransformation, spike: float | None
) -> optax.GradientTransformation:
    """Returns an optimizer that does nothing in a bad step.

    Args:
        inner: the optimizer.
        spike: how many times its recent mean the gradient norm must be to count as a spike; None:
            only what is not finite is bad.
    """

    def init(params: Any) -> GuardState:
        return GuardState(
            inner.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.bool_)
        )

    def update(updates: Any, state: GuardState, params: Any) -> tuple[Any, GuardState]:
        norm = optax.tree.norm(updates).astype(jnp.float32)
        is_bad = ~jnp.isfinite(norm)
        if spike is not None:
            mean = state.mean_norm / (1 - RECENT ** jnp.maximum(state.good_steps, 1))
            is_bad |= (state.good_steps >= WARM_UP) & (norm > spike * mean)
        kept = lambda old, new: jax.tree.map(lambda a, b: jnp.where(is_bad, a, b), old, new)  # noqa: E731
        safe = jax.tree.map(lambda g: jnp.where(is_bad, 0, g), updates)
        changed, own = inner.update(safe, state.inner, params)
        mean_norm = RECENT * state.mean_norm + (1 - RECENT) * norm
        return kept(jax.tree.map(jnp.zeros_like, changed), changed), GuardState(
            kept(state.inner, own),
            jnp.where(is_bad, state.mean_norm, mean_norm),
            state.good_steps + ~is_bad,
            is_bad,
        )

    return optax.GradientTransformation(init, update)
