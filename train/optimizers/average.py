"""A moving average of the weights, which often evaluates better than the weights themselves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
    """The optimizer's state, and the average of the parameters in float32."""

    inner: Any
    average: Any


def with_average(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Returns an optimizer whose state also has `decay * average + (1 - decay) * parameters`."""

    def init(params: Any) -> AverageState:
        average = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
        return AverageState(inner.init(params), average)

    def update(updates: Any, state: AverageState, params: Any) -> tuple[Any, AverageState]:
        updates, own = inner.update(updates, state.inner, params)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, state.average, new)
        return updates, AverageState(own, average)

    return optax.GradientTransformation(init, update)


def averaged(state: Any, params: Any) -> Any:
    """Returns the average in an optimizer's state, in the dtypes of the parameters; else these."""
    found = optax.tree.get(state, "average", None)
    return params if found is None else jax.tree.map(lambda a, x: a.astype(x.dtype), found, params)
