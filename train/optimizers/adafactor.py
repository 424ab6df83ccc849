"""Adafactor (Shazeer and Stern, 2018): squares of gradients kept as sums over rows and columns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .matrices import Shape

DECAY = -0.8  # the running mean of step t keeps 1 - t ** DECAY
SMALLEST_SQUARE = 1e-30
LARGEST_RMS = 1.0  # of an update


class AdafactorState(NamedTuple):
    """Running means of squared gradients: of matrices by row and column, of others all of them.

    In a matrix's `whole`, and in the others' `rows` and `columns`, there is a placeholder.
    """

    taken: Array
    rows: Any
    columns: Any
    whole: Any


def scale_by_adafactor(shapes: Any) -> optax.GradientTransformation:
    """Returns updates as transformers' `Adafactor(scale_parameter=False, relative_step=False)`.

    Args:
        shapes: a tree like the parameters, with the `Shape` of each. Each layer's matrix and each
            layer's vector is a parameter of its own, also where layers are stacked.
    """
    none = jnp.zeros(())

    def init(params: Any) -> AdafactorState:
        def zeros(x: Array, left_out: tuple[int, ...]) -> Array:
            return jnp.zeros([size for i, size in enumerate(x.shape) if i not in left_out], x.dtype)

        def make(leaf: Any) -> Any:
            return jax.tree.map(leaf, params, shapes)

        return AdafactorState(
            jnp.zeros((), jnp.int32),
            make(lambda x, shape: zeros(x, shape.columns) if shape.is_matrix else none),
            make(lambda x, shape: zeros(x, shape.rows) if shape.is_matrix else none),
            make(lambda x, shape: none if shape.is_matrix else jnp.zeros_like(x)),
        )

    def update(updates: Any, state: AdafactorState, params: Any = None) -> tuple[Any, Any]:
        step = optax.safe_increment(state.taken)
        kept = 1 - step.astype(jnp.float32) ** DECAY

        def one(g: Array, rows: Array, columns: Array, whole: Array, shape: Shape) -> tuple:
            squares = jnp.square(g) + SMALLEST_SQUARE
            if not shape.is_matrix:
                whole = kept * whole + (1 - kept) * squares
                return _clipped(g * jax.lax.rsqrt(whole), shape), rows, columns, whole
            rows = kept * rows + (1 - kept) * squares.mean(shape.columns)
            columns = kept * columns + (1 - kept) * squares.mean(shape.rows)
            by_row = jnp.expand_dims(rows, shape.columns)
            by_row = by_row / by_row.mean(shape.rows, keepdims=True)
            scaled = g * jax.lax.rsqrt(by_row) * jax.lax.rsqrt(jnp.expand_dims(columns, shape.rows))
            return _clipped(scaled, shape), rows, columns, whole

        found = jax.tree.map(one, updates, *state[1:], shapes)
        parts = [jax.tree.map(lambda _, x, i=i: x[i], updates, found) for i in range(4)]
        return parts[0], AdafactorState(step, *parts[1:])

    return optax.GradientTransformation(init, update)


def _clipped(update: Array, shape: Shape) -> Array:
    """Scales an update down to the largest root mean square."""
    rms = jnp.sqrt(jnp.mean(jnp.square(update), axis=shape.own, keepdims=True))
    return update / jnp.maximum(rms / LARGEST_RMS, 1.0)
