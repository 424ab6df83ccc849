"""Traces the JAX model: records the intermediate activations of a forward pass."""

from collections import Counter, defaultdict
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
from jaxllm.interop.parity.alignment.activations import positions_of
from jaxllm.interop.parity.alignment.calls import of_call, without_call
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.references.overrides import attribute
from jaxllm.interop.parity.memory.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.numerics.attention_scores import PROBS, SCORES, seen_only
from jaxllm.interop.parity.report.activation_rows import LOGITS
from jaxllm.layers.hooks import HOOK, apply_hook
from jaxllm.models import Model, Output, with_scanned_layers
from jaxllm.models.stack import Stack
from jaxllm.sharding import to_host

OUTPUT = "__call__"  # the name under which the hook of a module gets its output
PRECISION = "highest"  # full float32 products; by default accelerators round the operands

# Recorded activations by path, those of later calls by the names of `calls`. There are several if
# attention works in blocks of queries.
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
    return _joined(_run(_opened(model), inputs, paths))


def trace_free_and_forced(
    model: Model, inputs: Inputs, theirs: Mapping[str, np.ndarray], store: ArrayStore = in_memory
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs the model twice: on its own, and each activation from the reference's inputs.

    In the second run, each activation is recorded and then replaced by the reference's.

    Args:
        model: the JAX model.
        inputs: its inputs.
        theirs: activations of the reference by JAX path.
        store: the store for the activations.

    Returns:
        The activations of both runs by path, and their logits, in float32.
    """
    given = {path: array for path, array in theirs.items() if path != LOGITS}
    paths, opened = list(dict.fromkeys(map(without_call, given))), _opened(model)
    free = _joined(_run(opened, inputs, paths, store=store), store)
    return free, _joined(_run(opened, inputs, paths, given, store), store)


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
    outputs: Outputs = defaultdict(list)
    counts: Counter[str] = Counter()  # calls or, of blocks of queries, positions so far

    def listen(module_path: str, name: str, value: Any) -> Any:
        path = module_path if name == OUTPUT else f"{module_path}.{name}".removeprefix(".")
        if path not in paths:
            return value
        length = positions_of(path, inputs).shape[1]
        if not is_whole(path) and inputs.source is not None and value.shape[1] != length:
            return value  # a call for the other sequence, such as of an embedding of both
        number, start = divmod(counts[path], length) if is_whole(path) else (counts[path], 0)
        counts[path] += value.shape[1] if is_whole(path) else 1
        path = of_call(path, number)
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
    if missing := [path for path in paths if path not in outputs]:
        raise UserError(f"the model has no activation at {', '.join(missing)}")
    return {**outputs, LOGITS: [store(_on_host(out.logits))]}


def _on_host(value: jax.Array) -> np.ndarray:
    return to_host(value).astype(np.float32, copy=False)


def _joined(outputs: Outputs, store: ArrayStore = in_memory) -> dict[str, np.ndarray]:
    """Returns one array for each call: blocks of queries are joined."""
    joined = {}
    for path, blocks in outputs.items():
        joined[path] = store(np.concatenate(blocks, 1)) if is_whole(path) else blocks[0]
        if path.endswith(f".{SCORES}"):
            joined[path] = store(seen_only(joined[path]))
    return joined


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
