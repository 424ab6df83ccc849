"""Updates of bfloat16 parameters, which are finer than bfloat16: added up, or rounded at random."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class MasterState(NamedTuple):
    """The optimizer's state, and the parameters in float32."""

    inner: Any
    master: Any


def with_master(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that updates a float32 copy, which the parameters are rounded from."""

    def init(params: Any) -> MasterState:
        master = _widened(params)
        return MasterState(inner.init(master), master)

    def update(updates: Any, state: MasterState, params: Any) -> tuple[Any, MasterState]:
        updates, own = inner.update(_widened(updates), state.inner, state.master)
        master = optax.apply_updates(state.master, updates)
        return _difference(master, params), MasterState(own, master)

    return optax.GradientTransformation(init, update)


class StochasticState(NamedTuple):
    """The optimizer's state, and the number of steps taken."""

    inner: Any
    taken: Array


def with_stochastic_rounding(
    inner: optax.GradientTransformation, seed: int
) -> optax.GradientTransformation:
    """Returns an optimizer whose updated parameters are rounded up or down at random.

    The nearer number is the likelier, so that what rounding loses is zero on average.
    """

    def init(params: Any) -> StochasticState:
        return StochasticState(inner.init(_widened(params)), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: StochasticState, params: Any) -> tuple[Any, StochasticState]:
        wide = _widened(params)
        updates, own = inner.update(_widened(updates), state.inner, wide)
        key = jax.random.fold_in(jax.random.key(seed), state.taken)

        def rounded(path: Any, x: Array) -> Array:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return round_stochastically(x, jax.random.fold_in(key, zlib.crc32(name.encode())))

        target = jax.tree_util.tree_map_with_path(rounded, optax.apply_updates(wide, updates))
        return _difference(target, params), StochasticState(own, state.taken + 1)

    return optax.GradientTransformation(init, update)


def round_stochastically(x: Array, key: Array) -> Array:
    """Rounds float32 numbers to bfloat16, up with a probability equal to the part cut off."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> 16
    kept = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), kept, x).astype(jnp.bfloat16)


def _widened(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _difference(wanted: Any, params: Any) -> Any:
    """Returns the updates that make `params`, once rounded, the wanted numbers.

    The difference of a number and its rounding is exact (Sterbenz, 1974), and so is their sum.
    """
    return jax.tree.map(lambda x, p: x.astype(jnp.float32) - p.astype(jnp.float32), wanted, params)
