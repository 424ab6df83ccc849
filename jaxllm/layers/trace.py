"""Hooks on what a layer computes on the way, to record or to replace it."""

from typing import Any

from flax import nnx
from jax import Array

HOOK = "hook"  # the attribute of a module that holds its hook


def has_hook(module: nnx.Module) -> bool:
    """Whether the module has a hook."""
    return hasattr(module, HOOK)


def apply_hook(module: nnx.Module, **values: Array) -> tuple[Array, ...]:
    """Calls the module's `hook(name, value)`, if it has one, with each of the values.

    Returns the values to go on with: what the hook returns, or else `values` as they are.
    """
    hook = getattr(module, HOOK, lambda name, value: value)
    return tuple(hook(name, value) for name, value in values.items())


def without_hooks(modules: Any) -> Any:
    """A copy with the same parameters and no hooks, which cannot record what is traced."""
    copied = nnx.merge(*nnx.split(modules))
    for _, module in nnx.iter_graph(copied):
        if isinstance(module, nnx.Module) and has_hook(module):
            delattr(module, HOOK)
    return copied
