"""Showing what a layer computes on the way, to those who compare it with another."""

from typing import Any

from flax import nnx
from jax import Array

CAPTURES = "__captures__"  # the attribute by which `nnx.capture` listens to a module
STAND_IN = "stand_in"  # the attribute of a module that says what it goes on with


def is_watched(module: nnx.Module) -> bool:
    """Whether `nnx.capture` is listening to what the module shows."""
    return hasattr(module, CAPTURES)


def show(module: nnx.Module, **values: Array) -> tuple[Array, ...]:
    """Records values of a module under their names if `nnx.capture` is listening.

    Returns what the module is to go on with: the values, or what the listener has put in their
    place by a function `stand_in(name, value)` of the module.
    """
    if not is_watched(module):
        return tuple(values.values())
    for name, value in values.items():
        module.sow(nnx.Intermediate, name, value)
    stand_in = getattr(module, STAND_IN, lambda name, value: value)
    return tuple(stand_in(name, value) for name, value in values.items())


def unwatched(modules: Any) -> Any:
    """A copy with the same parameters that nobody listens to: what is traced cannot be shown."""
    copied = nnx.merge(*nnx.split(modules))
    for _, module in nnx.iter_graph(copied):
        if isinstance(module, nnx.Module) and is_watched(module):
            delattr(module, CAPTURES)
    return copied
