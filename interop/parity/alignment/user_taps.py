"""Taps that users put into JAX functions of their own: named activations to record or replace."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxllm.errors import UserError

COUNTED = "{L}"  # in the name of a tap: the number of the call with this name, from 0


def tap(name: str, x: Array) -> Array:
    """Names an activation of a JAX function, so that `compare` can record and replace it.

    It returns `x` as it is and costs nothing, but for the runs of a comparison. It may be called
    inside `jax.vmap`, whose axis then comes first, and inside `jax.jit`, `jax.lax.scan` and
    `jax.checkpoint`, on any number of devices. A run raises UserError where it is inside
    `jax.shard_map`, in which no whole activation exists.

    Args:
        name: the right side of a rule in `JaxFunction.taps`, such as "layers.0.mlp". In a loop or
            a scan over layers, "layers.{L}.mlp" has the number of the call in place of {L}.
        x: the activation, of any shape whose first dimensions are batch and position.
    """
    if not _RUNS:
        return x
    return TAP.bind(x, name=name)


class _Run(NamedTuple):
    """A run of a function: the hook that its taps go to, and their calls so far by name."""

    hook: Callable[[str, Any], Any]
    calls: Counter[str]


_RUNS: list[_Run] = []  # the current one is last


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


# `jax.checkpoint` traces its function and then evaluates it operation by operation, like all else
# in a run. An operation of its own meets values there; `jax.pure_callback` would be compiled, which
# it cannot be for several devices.
TAP = Primitive("jaxllm_tap")
TAP.def_impl(lambda x, *, name: _take(name, x))
TAP.def_abstract_eval(lambda x, *, name: x)


def _batched(args: tuple[Array], axes: tuple[int], *, name: str) -> tuple[Array, int]:
    """Takes all examples of a `jax.vmap` in one call."""
    return TAP.bind(jax.numpy.moveaxis(args[0], axes[0], 0), name=name), 0


batching.primitive_batchers[TAP] = _batched


def _compiled(context: Any, x: Any, *, name: str) -> Any:
    raise UserError(
        f"tap({name!r}, ...) is inside jax.shard_map, or in another function that is compiled "
        "in any case, and sees no whole activation there: put it outside"
    )


mlir.register_lowering(TAP, _compiled)
