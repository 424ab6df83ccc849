"""What our model computes on the way from its inputs to its outputs."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.config import with_fields
from jaxllm.layers.trace import STAND_IN, show
from jaxllm.models import Model, Output, with_scanned_layers
from jaxllm.models.stack import Stack
from jaxllm.sharding import on_host

from .inputs import Inputs
from .rows import LOGITS
from .scores import PROBS, SCORES, seen_only

OUTPUT = "__call__"  # the name by which a module shows what it returns
PRECISION = "highest"  # float32 products; by default accelerators round their inputs


def call(model: Model, given: Mapping[str, Any]) -> Output:
    """What our model returns, given arrays by the names of `Inputs`."""
    sequences = [given[name] for name in ("source", "target") if name in given]
    segments = {"source_mask": "src_segment_ids", "target_mask": "segment_ids"}
    return model(*sequences, **{segments[name]: given[name] for name in segments if name in given})


def trace_model(model: Model, inputs: Inputs, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """The output of each module of `model` that `paths` names, and its logits, in float32.

    Raises:
        ValueError: the model has no such module.
    """
    return _lasts(_run(_opened(model), inputs), paths)


def trace_both(
    model: Model, inputs: Inputs, theirs: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """As `trace_model`: on its own, and with the reference's outputs as each step's input.

    In the second run each step goes on with what the reference computed, by the same path, instead
    of what it computes itself. Steps that are computed twice, with one name, do not.
    """
    paths = [path for path in theirs if path != LOGITS]
    outputs = _run(_opened(model), inputs)
    ours = _lasts(outputs, paths)
    given = {path: theirs[path] for path in paths if is_whole(path) or len(outputs[path]) == 1}
    opened = _opened(model)
    for path, module in nnx.iter_modules(opened):
        setattr(module, STAND_IN, _Substitute(".".join(map(str, path)), given))
    return ours, _lasts(_run(opened, inputs), paths)


class _Substitute:
    """Hands a module the reference's values in place of its own."""

    def __init__(self, path: str, given: Mapping[str, np.ndarray]):
        self.path, self.given = path, given
        self.starts: dict[str, int] = {}  # of the next block of queries, by name

    def __call__(self, name: str, value: Any) -> Any:
        path = self.path if name == OUTPUT else f"{self.path}.{name}"
        if path not in self.given:
            return value
        start = self.starts.get(path, 0)
        self.starts[path] = start + value.shape[1]
        theirs = self.given[path][:, start : start + value.shape[1]]
        # A score of minus infinity would be NaN in a row of nothing else.
        return jnp.maximum(jnp.asarray(theirs, value.dtype), jnp.finfo(value.dtype).min)


def is_whole(path: str) -> bool:
    """Whether the values shown by this name are the parts of one, block by block."""
    return path.rpartition(".")[2] in (SCORES, PROBS)


def _run(model: Model, inputs: Inputs) -> dict[str, tuple[Any, ...]]:
    """All that modules return and show, by path, and the logits."""
    # Not jitted: compiling takes longer the deeper the model, running op by op does not.
    forward: Any = nnx.capture(model, nnx.Intermediate)
    with jax.default_matmul_precision(PRECISION), _shown_outputs(model):
        returned: Any = call(forward, {n: jnp.asarray(x) for n, x in inputs.arrays.items()})
    out, captured = returned
    outputs = {
        ".".join(name for name in map(str, path) if name != OUTPUT): variable.get_value()
        for path, variable in nnx.to_flat_state(captured)
    }
    return {**outputs, LOGITS: (out.logits,)}


def _lasts(outputs: Mapping[str, Sequence[Any]], paths: Sequence[str]) -> dict[str, np.ndarray]:
    """One array for each path, of what was computed twice the last; and the logits."""
    if missing := [path for path in paths if path not in outputs]:
        raise ValueError(f"the model has no {', '.join(missing)}")
    arrays = {}
    for path in (*paths, LOGITS):
        whole = jnp.concatenate(outputs[path], 1) if is_whole(path) else outputs[path][-1]
        arrays[path] = on_host(whole).astype(np.float32, copy=False)
        if path.endswith(f".{SCORES}"):
            arrays[path] = seen_only(arrays[path])
    return arrays


@contextmanager
def _shown_outputs(model: Model) -> Iterator[None]:
    """Every module shows what it returns; of several things the first, which flows on."""
    calls = {
        type(module): type(module).__call__
        for _, module in nnx.iter_modules(model)
        if callable(module)
    }
    with ExitStack() as stack:
        for kind, call_module in calls.items():
            stack.enter_context(mock.patch.object(kind, "__call__", _showing(call_module)))
        yield


def _showing(call_module: Callable) -> Callable:
    @functools.wraps(call_module)
    def shown(module: nnx.Module, *args: Any, **options: Any) -> Any:
        returned = call_module(module, *args, **options)
        if type(returned) is not tuple:
            return show(module, **{OUTPUT: returned})[0]
        return (*show(module, **{OUTPUT: returned[0]}), *returned[1:])

    return shown


def _opened(model: Model) -> Model:
    """A copy in which every layer is a module of its own, run outside of any transform."""
    unstacked = with_scanned_layers(model, False)
    opened = nnx.merge(*nnx.split(unstacked))
    for _, module in nnx.iter_graph(opened):
        if isinstance(module, Stack):
            module.config = with_fields(module.config, remat="none")
    return opened
