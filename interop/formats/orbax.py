"""Native checkpoints: Orbax checkpoints with the model's config beside its parameters.

A native checkpoint is a folder written by `save`, one step written by `jaxllm train`, or a whole
run, of which the newest step is read. It holds the parameters as the item `model` and describes
them in its metadata, so it loads onto any mesh without further information.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from jaxllm.checkpoint_origin import KEPT, Origin
from jaxllm.checkpointing.orbax_layout import (
    is_step,
    list_steps,
    read_step,
    step_metadata,
    stored_digest,
)
from jaxllm.checkpointing.restore import digest_items, restore
from jaxllm.checkpointing.stored_array import StoredArray, open_arrays
from jaxllm.config import Dtype, dtype_fields
from jaxllm.errors import CheckpointArgumentError, CheckpointError
from jaxllm.layers.norm import saturate
from jaxllm.models import Model
from jaxllm.numerics.narrowing import Zeroed
from jaxllm.params import describe, map_parameters, parameter_shardings, read_model, split
from jaxllm.storage.paths import check_is_utf8

from .lazy_tensor import TensorSource, find_overflows

NAME = "native"
_CACHE_BYTES = 32 << 20

logger = logging.getLogger(__name__)


def is_native(path: Path) -> bool:
    """Returns whether a folder is a native checkpoint, or a run that has some."""
    return is_step(path) or bool(list_steps(path))


def save(model: Model, path: Path) -> None:
    """Writes a model into a folder, in the form of a run whose only checkpoint is step 0."""
    check_is_utf8(path)
    step, items = path / "checkpoints" / "0", {"model": split(model)[1]}
    metadata = step_metadata(describe(model), digest_items(items))
    ocp.save_checkpointables(step, items, custom_metadata=metadata)


def load(path: Path, *, mesh: Mesh | None = None, dtype: Dtype | None = None) -> Model:
    """Loads the model of a native checkpoint, or of the newest step of a run.

    Args:
        path: the checkpoint or the run.
        mesh: where to put the parameters; by default on the first local device.
        dtype: of the parameters and the activations; by default as stored. Finite numbers beyond
            its range become its largest, with a warning, as on numbers that become zero.

    Raises:
        CheckpointError: see `read_model`.
    """
    path = find_step(path)
    model, stored = read_model(path, dtype_fields(dtype) if dtype else {})
    placed = {} if mesh is None else parameter_shardings(model, mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])

    def target(name: str, variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        shape = variable.get_value().shape
        return jax.ShapeDtypeStruct(shape, stored[name].dtype, sharding=placed.get(name, alone))

    model.origin = own_origin(path, model.origin)
    bind, _ = split(model)
    params = restore(path, {"model": map_parameters(model, target)})["model"]
    if dtype is None:
        return bind(params)
    leaves, structure = jax.tree.flatten(params)
    narrowed = [_narrow(array, dtype) for array in leaves]
    if any(overflowed or zeroed for _, overflowed, zeroed in narrowed):
        _warn(path, np.dtype(dtype))
    return bind(jax.tree.unflatten(structure, [array for array, _, _ in narrowed]))


def _warn(path: Path, dtype: np.dtype) -> None:
    """Logs which arrays of a step have numbers that overflow or become zero in `dtype`."""
    zeroed = Zeroed(dtype)
    if found := find_overflows(open_step(path)[1], dtype, _CACHE_BYTES, zeroed):
        logger.warning("%s; clamped to it:\n  %s", found[0], "\n  ".join(found[1:]))
    if warning := zeroed.describe():
        logger.warning("%s", warning)


def _narrow(array: jax.Array, dtype: Dtype) -> tuple[jax.Array, bool, bool]:
    """Casts an array and frees the original; returns whether numbers were clamped or zeroed."""
    if array.dtype == np.dtype(dtype):
        return array, False, False
    narrow, overflowed, zeroed = _clamp(array, dtype)
    array.delete()
    return narrow, bool(overflowed), bool(zeroed)


@partial(jax.jit, static_argnums=1)
def _clamp(array: jax.Array, dtype: Dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Casts an array; finite numbers beyond the range of `dtype` become its limits.

    Returns the array, whether there were such numbers, and whether some became zero.
    """
    cast = array.astype(dtype)
    overflowed = jnp.any(jnp.isfinite(array) & ~jnp.isfinite(cast))
    zeroed = jnp.any((array != 0) & (cast == 0))
    return jnp.where(jnp.isinf(array), cast, saturate(array, dtype)), overflowed, zeroed


def find_step(path: Path, step: int | None = None) -> Path:
    """Returns the absolute path of one step of a run, by default the newest.

    Raises:
        CheckpointError: the run has no such step.
    """
    path = path.resolve()
    if is_step(path):
        if step not in (None, int(path.name) if path.name.isdigit() else None):
            raise CheckpointArgumentError(f"{path} is one checkpoint, not a run with a step {step}")
        return path
    steps = list_steps(path)
    if step is None:
        return list(steps.values())[-1]
    if step not in steps:
        known = ", ".join(map(str, steps))
        raise CheckpointArgumentError(f"{path} has no checkpoint of step {step}; it has {known}")
    return steps[step]


def open_step(path: Path) -> tuple[Model, dict[str, TensorSource]]:
    """Returns the model of a step, without weights, and its arrays, which are read chunk by chunk.

    An array is stored in the chunks that it was sharded into when it was saved. The chunks read
    last are cached, because tensors of several layers may need the same one: layers that were
    stacked on one device share a chunk.

    Raises:
        CheckpointError: see `read_model`.
    """
    model, stored = read_model(path)
    model.origin = own_origin(path, model.origin)
    # Enough for the chunks of one array and of the next.
    cache_bytes = max(_CACHE_BYTES, 2 * max(array.chunk_bytes for array in stored.values()))
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    arrays = open_arrays(path, read_step(path).about, "model", stored, context)
    sources = {name: TensorSource(a.dtype, a.shape, a.read) for name, a in arrays.items()}
    return model, sources


def own_origin(step: Path, origin: Origin | None) -> Origin | None:
    """Returns the origin with its files in the copy that the run or native checkpoint keeps."""
    kept = step.parent.parent / KEPT
    if not kept.is_dir() or (origin is None and not any(kept.iterdir())):
        return origin
    own = Origin(family="", config="{}", layout="{}", directory="") if origin is None else origin
    return replace(own, directory=str(kept))


def find_damage(path: Path) -> list[str]:
    """Returns the problems of a step's arrays other than the model's, such as an optimizer's."""
    about, items = read_step(path)
    problems: list[str] = []
    for item in items.keys() - {"model"}:
        for name in items[item]:
            try:
                StoredArray(path, item, name, stored_digest(about, item, name)).check()
            except CheckpointError as error:
                problems += error.problems
    return problems
