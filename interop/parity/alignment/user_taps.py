"""Taps that users put into JAX functions of their own: named activations to record or replace."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

COUNTED = "{L}"  # in the name of a tap: the number of the call with this name, from 0


def tap(name: str, x: Array) -> Array:
    """Names an activation of a JAX function, so that `compare` can record and replace it.

    It returns `x` as it is and costs nothing, but for the runs of a comparison. It may be called
    inside `jax.vmap`, whose axis then comes first, and inside `jax.jit` and `jax.lax.scan`.

    Args:
        name: the right side of a rule in `JaxFunction.taps`, such as "layers.0.mlp". In a loop or
            a scan over layers, "layers.{L}.mlp" has the number of the call in place of {L}.
        x: the activation, of any shape whose first dimensions are batch and position.
    """
    run = _RUN.get()
    return x if run is None else run.take(name, x)


class _Run:
    """A run of a function whose taps go to a hook, which returns the values to continue with."""

    def __init__(self, hook: Callable[[str, Any], Any]):
        self._hook, self._calls = hook, Counter[str]()

    def take(self, name: str, x: Array) -> Array:
        """Takes a value from the function; one that is being traced, when it is computed."""
        if not isinstance(x, jax.core.Tracer):
            return self._take(name, x)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        # `broadcast_all` gives all examples of a vmap in one call.
        on_host = partial(self._take_on_host, name)
        return jax.pure_callback(on_host, shape, x, vmap_method="broadcast_all")

    def _take_on_host(self, name: str, x: Any) -> np.ndarray:
        # An array of NumPy: a callback that computes in JAX may wait for itself.
        return np.asarray(self._take(name, np.asarray(x)), x.dtype)

    def _take(self, name: str, x: Any) -> Any:
        number = self._calls[name]
        self._calls[name] += 1
        return self._hook(name.replace(COUNTED, str(number)), x)


_RUN: ContextVar[_Run | None] = ContextVar("run", default=None)


@contextmanager
def taps_to(hook: Callable[[str, Any], Any]) -> Iterator[None]:
    """Within this context, `tap` calls `hook(name, value)` and continues with what it returns."""
    token = _RUN.set(_Run(hook))
    try:
        # Loops and jitted functions run step by step, so that taps see values, in order.
        with jax.disable_jit():
            yield
    finally:
        _RUN.reset(token)
