"""Hooks that record or replace intermediate values of a layer."""

from typing import Any

from flax import nnx
from jax import Array

HOOK = "hook"  # the attribute of a module that holds its hook


def has_hook(module: nnx.Module) -> bool:
    """Whether the module has a hook."""
    return hasattr(module, HOOK)


def apply_hook(module: nnx.Module, **values: Array) -> tuple[Array, ...]:
    """Calls the module's `hook(name, value)` with each value, if the module has a hook.

    Returns:
        The values to use from here on: those that the hook returns, or `values` without a hook.
    """
    hook = getattr(module, HOOK, lambda name, value: value)
    return tuple(hook(name, value) for name, value in values.items())


def without_hooks(modules: Any) -> Any:
    """Returns a copy with the same parameters and no hooks, since hooks cannot record tracers."""
    copied = nnx.merge(*nnx.split(modules))
    for _, module in nnx.iter_graph(copied):
        if isinstance(module, nnx.Module) and has_hook(module):
            delattr(module, HOOK)
    return copied
