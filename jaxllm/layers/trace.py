"""Showing what a layer computes on the way, to those who compare it with another."""

from typing import Any

from flax import nnx
from jax import Array

HOOK = "listener"  # the attribute of a module by which it is listened to


def has_hook(module: nnx.Module) -> bool:
    """Whether somebody listens to what the module shows."""
    return hasattr(module, HOOK)


def apply_hook(module: nnx.Module, **values: Array) -> tuple[Array, ...]:
    """Tells values of a module to its listener, by their names, if it has one.

    Returns what the module is to go on with: the values, or what its `listener(name, value)` puts
    in their place.
    """
    listener = getattr(module, HOOK, lambda name, value: value)
    return tuple(listener(name, value) for name, value in values.items())


def without_hooks(modules: Any) -> Any:
    """A copy with the same parameters that nobody listens to: what is traced cannot be shown."""
    copied = nnx.merge(*nnx.split(modules))
    for _, module in nnx.iter_graph(copied):
        if isinstance(module, nnx.Module) and has_hook(module):
            delattr(module, HOOK)
    return copied
