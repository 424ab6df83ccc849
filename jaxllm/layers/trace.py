"""Showing what a layer computes on the way, to those who compare it with another."""

from flax import nnx
from jax import Array

LISTENER = "listener"  # the attribute of a module by which it is listened to


def is_watched(module: nnx.Module) -> bool:
    """Whether somebody listens to what the module shows."""
    return hasattr(module, LISTENER)


def show(module: nnx.Module, **values: Array) -> tuple[Array, ...]:
    """Tells values of a module to its listener, by their names, if it has one.

    Returns what the module is to go on with: the values, or what its `listener(name, value)` puts
    in their place.
    """
    listener = getattr(module, LISTENER, lambda name, value: value)
    return tuple(listener(name, value) for name, value in values.items())
