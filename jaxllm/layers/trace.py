"""Showing what a layer computes on the way, to those who compare it with another."""

from flax import nnx
from jax import Array


def show(module: nnx.Module, **values: Array) -> None:
    """Records values of a module under their names if `nnx.capture` is listening, else nothing."""
    if hasattr(module, "__captures__"):
        for name, value in values.items():
            module.sow(nnx.Intermediate, name, value)
