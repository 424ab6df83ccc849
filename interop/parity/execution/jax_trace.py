"""What our model computes on the way from its inputs to its outputs."""

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
from jaxllm.interop.parity.numerics.array_store import Shelf, in_memory
from jaxllm.interop.parity.numerics.attention_scores import PROBS, SCORES, seen_only
from jaxllm.interop.parity.report.rows import LOGITS
from jaxllm.layers.trace import HOOK, apply_hook
from jaxllm.models import Model, Output, with_scanned_layers
from jaxllm.models.stack import Stack
from jaxllm.sharding import to_host

OUTPUT = "__call__"  # the name by which a module shows what it returns
PRECISION = "highest"  # float32 products; by default accelerators round their inputs

# By path what was shown, once or, block by block of queries, more often.
Outputs = dict[str, list[np.ndarray]]


def call(model: Model, given: Mapping[str, Any]) -> Output:
    """What our model returns, given arrays by the names of `Inputs`."""
    sequences = [given[name] for name in ("source", "target") if name in given]
    segments = {"source_mask": "src_segment_ids", "target_mask": "segment_ids"}
    return model(*sequences, **{segments[name]: given[name] for name in segments if name in given})


def trace_model(model: Model, inputs: Inputs, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """The output of each module of `model` that `paths` names, and its logits, in float32.

    Raises:
        UserError: the model has no such module.
    """
    return _lasts(_run(_opened(model), inputs, paths))


def trace_both(
    model: Model, inputs: Inputs, theirs: Mapping[str, np.ndarray], shelf: Shelf = in_memory
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """As `trace_model`: on its own, and with the reference's outputs as each step's input.

    In the second run each step goes on with what the reference computed, by the same path, instead
    of what it computes itself. Steps that are computed twice, with one name, do not. The outputs
    are kept on the shelf.
    """
    paths, opened = [path for path in theirs if path != LOGITS], _opened(model)
    outputs = _run(opened, inputs, paths, shelf=shelf)
    given = {path: theirs[path] for path in paths if is_whole(path) or len(outputs[path]) == 1}
    return _lasts(outputs, shelf), _lasts(_run(opened, inputs, paths, given, shelf), shelf)


def is_whole(path: str) -> bool:
    """Whether the values shown by this name are the parts of one, block by block."""
    return path.rpartition(".")[2] in (SCORES, PROBS)


def _run(
    model: Model,
    inputs: Inputs,
    paths: Sequence[str],
    given: Mapping[str, np.ndarray] = {},
    shelf: Shelf = in_memory,
) -> Outputs:
    """What modules return and show under these paths, in this order, and the logits, in float32.

    The model goes on with what is `given` instead.
    """
    outputs: Outputs = {path: [] for path in paths}

    def listen(module_path: str, name: str, value: Any) -> Any:
        path = module_path if name == OUTPUT else f"{module_path}.{name}"
        if path not in outputs:
            return value
        start = sum(x.shape[1] for x in outputs[path])  # of this block of queries
        outputs[path].append(shelf(_on_host(value)))
        if path not in given:
            return value
        theirs = jnp.asarray(given[path][:, start : start + value.shape[1]], value.dtype)
        # A score of minus infinity would be NaN in a row of nothing else.
        return jnp.maximum(theirs, jnp.finfo(value.dtype).min)

    for path, module in nnx.iter_modules(model):
        setattr(module, HOOK, partial(listen, ".".join(map(str, path))))
    # Not jitted: compiling takes longer the deeper the model, running op by op does not.
    with jax.default_matmul_precision(PRECISION), _shown_outputs(model):
        out = call(model, {name: jnp.asarray(array) for name, array in inputs.arrays.items()})
    if missing := [path for path in paths if not outputs[path]]:
        raise UserError(f"the model has no {', '.join(missing)}")
    return {**outputs, LOGITS: [shelf(_on_host(out.logits))]}


def _on_host(value: jax.Array) -> np.ndarray:
    return to_host(value).astype(np.float32, copy=False)


def _lasts(outputs: Outputs, shelf: Shelf = in_memory) -> dict[str, np.ndarray]:
    """One array for each path, of what was computed twice the last."""
    lasts = {}
    for path, calls in outputs.items():
        lasts[path] = shelf(np.concatenate(calls, 1)) if is_whole(path) else calls[-1]
        if path.endswith(f".{SCORES}"):
            lasts[path] = shelf(seen_only(lasts[path]))
    return lasts


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
    """A copy in which every layer is a module of its own, run outside of any transform."""
    unstacked = with_scanned_layers(model, False)
    opened = nnx.merge(*nnx.split(unstacked))
    for _, module in nnx.iter_graph(opened):
        if isinstance(module, Stack):
            module.config = with_fields(module.config, remat="none")
    return opened
