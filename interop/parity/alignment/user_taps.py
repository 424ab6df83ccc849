"""Taps that users put into JAX functions of their own: named activations to record or replace."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

COUNTED = "{L}"  # in the name of a tap: the number of the call with this name, from 0


def tap(name: str, x: Array) -> Array:
    """Names an activation of a JAX function, so that `compare` can record and replace it.

    It returns `x` as it is and costs nothing, but for the runs of a comparison. It may be called
    inside `jax.vmap`, whose axis then comes first, and inside `jax.jit` and `jax.lax.scan`; inside
    `jax.checkpoint` only if the parameters are on one device.

    Args:
        name: the right side of a rule in `JaxFunction.taps`, such as "layers.0.mlp". In a loop or
            a scan over layers, "layers.{L}.mlp" has the number of the call in place of {L}.
        x: the activation, of any shape whose first dimensions are batch and position.
    """
    if not _RUNS:
        return x
    if not isinstance(x, jax.core.Tracer):
        return _take(name, x)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    # `broadcast_all` gives all examples of a vmap in one call.
    return jax.pure_callback(partial(_take_on_host, name), shape, x, vmap_method="broadcast_all")


class _Run(NamedTuple):
    """A run of a function: the hook that its taps go to, and their calls so far by name."""

    hook: Callable[[str, Any], Any]
    calls: Counter[str]


_RUNS: list[_Run] = []  # the current one is last; XLA calls back from threads of its own


@contextmanager
def taps_to(hook: Callable[[str, Any], Any]) -> Iterator[None]:
    """Within this context, `tap` calls `hook(name, value)` and continues with what it returns."""
    _RUNS.append(_Run(hook, Counter()))
    try:
        # Loops and jitted functions run step by step, so that taps see values, in order. What JAX
        # traces nevertheless, such as `jax.checkpoint`, it keeps apart by these metadata: a trace
        # with taps is never used without a run, nor one without taps in a run.
        with jax.disable_jit(), set_xla_metadata(jaxllm="taps"):
            yield
    finally:
        _RUNS.pop()


def _take(name: str, x: Any) -> Any:
    """Takes a value of the current run; returns the value to continue with."""
    hook, calls = _RUNS[-1]
    number = calls[name]
    calls[name] += 1
    return hook(name.replace(COUNTED, str(number)), x)


def _take_on_host(name: str, x: Any) -> np.ndarray:
    # An array of NumPy: a callback that computes in JAX may wait for itself.
    return np.asarray(_take(name, np.asarray(x)), x.dtype)
