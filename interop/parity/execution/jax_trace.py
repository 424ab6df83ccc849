"""Traces the JAX model: records the intermediate activations of a forward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.config import with_fields
from jaxllm.errors import UserError
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.overrides import attribute
from jaxllm.interop.parity.numerics.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.numerics.attention_scores import PROBS, SCORES, seen_only
from jaxllm.interop.parity.report.activation_rows import LOGITS
from jaxllm.layers.hooks import HOOK, apply_hook
from jaxllm.models import Model, Output, with_scanned_layers
from jaxllm.models.stack import Stack
from jaxllm.sharding import to_host

OUTPUT = "__call__"  # the name under which the hook of a module gets its output
PRECISION = "highest"  # full float32 products; by default accelerators round the operands

# Recorded activations by path. There are several if attention works in blocks of queries, or if
# the module runs more than once.
Outputs = dict[str, list[np.ndarray]]


def call(model: Model, given: Mapping[str, Any]) -> Output:
    """Calls the JAX model with arrays by the names of `Inputs`."""
    sequences = [given[name] for name in ("source", "target") if name in given]
    segments = {"source_mask": "src_segment_ids", "target_mask": "segment_ids"}
    return model(*sequences, **{segments[name]: given[name] for name in segments if name in given})


def trace_model(model: Model, inputs: Inputs, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Runs the model and returns the activations at `paths` and the logits, in float32.

    Raises:
        UserError: the model has no activation of such a path.
    """
    return _lasts(_run(_opened(model), inputs, paths))


def trace_free_and_forced(
    model: Model, inputs: Inputs, theirs: Mapping[str, np.ndarray], store: ArrayStore = in_memory
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs the model twice: on its own, and each activation from the reference's inputs.

    In the second run, each activation is recorded and then replaced by the reference's. Those
    that are computed twice under one path are not replaced.

    Args:
        model: the JAX model.
        inputs: its inputs.
        theirs: activations of the reference by JAX path.
        store: the store for the activations.

    Returns:
        The activations of both runs by path, and their logits, in float32.
    """
    paths, opened = [path for path in theirs if path != LOGITS], _opened(model)
    outputs = _run(opened, inputs, paths, store=store)
    given = {path: theirs[path] for path in paths if is_whole(path) or len(outputs[path]) == 1}
    return _lasts(outputs, store), _lasts(_run(opened, inputs, paths, given, store), store)


def is_whole(path: str) -> bool:
    """Whether the values recorded at this path are blocks of queries that make up one array."""
    return path.rpartition(".")[2] in (SCORES, PROBS)


def _run(
    model: Model,
    inputs: Inputs,
    paths: Sequence[str],
    given: Mapping[str, np.ndarray] = {},
    store: ArrayStore = in_memory,
) -> Outputs:
    """Runs the model and records the activations at `paths`, in this order, and the logits.

    Activations whose path is in `given` are replaced by those after they are recorded.
    """
    outputs: Outputs = {path: [] for path in paths}

    def listen(module_path: str, name: str, value: Any) -> Any:
        path = module_path if name == OUTPUT else f"{module_path}.{name}".removeprefix(".")
        if path not in outputs:
            return value
        start = sum(x.shape[1] for x in outputs[path])  # of this block of queries
        outputs[path].append(store(_on_host(value)))
        if path not in given:
            return value
        on_host = isinstance(value, np.ndarray)  # of a tap in a vmap, where JAX must not be used
        numpy: Any = np if on_host else jnp
        theirs = numpy.asarray(given[path][:, start : start + value.shape[1]], value.dtype)
        # A row of scores that are all minus infinity would make softmax return NaN.
        return numpy.maximum(theirs, jnp.finfo(value.dtype).min)

    for path, module in nnx.iter_modules(model):
        setattr(module, HOOK, partial(listen, ".".join(map(str, path))))
    # Not jitted: compile time grows with the depth of the model.
    with jax.default_matmul_precision(PRECISION), _shown_outputs(model):
        out = call(model, {name: jnp.asarray(array) for name, array in inputs.arrays.items()})
    if missing := [path for path in paths if not outputs[path]]:
        raise UserError(f"the model has no activation at {', '.join(missing)}")
    return {**outputs, LOGITS: [store(_on_host(out.logits))]}


def _on_host(value: jax.Array) -> np.ndarray:
    return to_host(value).astype(np.float32, copy=False)


def _lasts(outputs: Outputs, store: ArrayStore = in_memory) -> dict[str, np.ndarray]:
    """Returns one array for each path: blocks of queries joined, else the last call's output."""
    lasts = {}
    for path, calls in outputs.items():
        lasts[path] = store(np.concatenate(calls, 1)) if is_whole(path) else calls[-1]
        if path.endswith(f".{SCORES}"):
            lasts[path] = store(seen_only(lasts[path]))
    return lasts


@contextmanager
def _shown_outputs(model: Model) -> Iterator[None]:
    """Within this context, hooks get the output of every module; of a tuple, its first element."""
    calls = {
        type(module): type(module).__call__
        for _, module in nnx.iter_modules(model)
        if callable(module)
    }
    with ExitStack() as stack:
        for kind, call_module in calls.items():
            stack.enter_context(attribute(kind, "__call__", _showing(call_module)))
        yield


def _showing(call_module: Callable) -> Callable:
    @wraps(call_module)
    def shown(module: nnx.Module, *args: Any, **options: Any) -> Any:
        returned = call_module(module, *args, **options)
        if type(returned) is not tuple:
            return apply_hook(module, **{OUTPUT: returned})[0]
        return (*apply_hook(module, **{OUTPUT: returned[0]}), *returned[1:])

    return shown


def _opened(model: Model) -> Model:
    """Returns a copy with unstacked layers and without remat, so that hooks see plain arrays."""
    unstacked = with_scanned_layers(model, False)
    opened = nnx.merge(*nnx.split(unstacked))
    for _, module in nnx.iter_graph(opened):
        if isinstance(module, Stack):
            module.config = with_fields(module.config, remat="none")
    return opened
