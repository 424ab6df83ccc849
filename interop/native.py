"""Native checkpoints: Orbax, with the model's config beside its parameters.

A folder written by `save`, one step that `jaxllm train` wrote, or a whole run, of which the
newest step counts. Each holds the parameters as the item `model` and says what they are in its
metadata, so that it loads onto any mesh without further information.
"""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from jaxllm.config import Dtype
from jaxllm.models.decoder import Decoder
from jaxllm.params import describe, from_description, shardings, split, tree_of

from .tensors import CheckpointError


def is_native(path: Path) -> bool:
    """Whether a folder is a native checkpoint, or a run that holds some."""
    return _is_step(path) or bool(_steps(path))


def save(model: Decoder, path: Path) -> None:
    """Writes the model into a folder, as a run of no steps."""
    step, items = path / "checkpoints" / "0", {"model": split(model)[1]}
    ocp.save_checkpointables(step, items, custom_metadata={"jaxllm": describe(model)})


def load(path: Path, *, mesh: Mesh | None = None, dtype: Dtype | None = None) -> Decoder:
    """The model of a native checkpoint, or of a run's newest step."""
    path = path.resolve()  # Orbax finds nothing by a relative path
    if not _is_step(path):
        path = _steps(path)[-1]
    found = ocp.checkpointables_metadata(path)
    about = (found.custom_metadata or {}).get("jaxllm")
    if about is None or not found.metadata.get("model"):
        raise CheckpointError(["an Orbax checkpoint that jaxllm did not write"], path)
    model = from_description(about, **({"param_dtype": dtype, "dtype": dtype} if dtype else {}))
    stored = nnx.traversals.flatten_mapping(found.metadata["model"], sep=".")
    placed = {} if mesh is None else shardings(model, mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])

    def target(name: str, variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        kept = np.dtype(dtype) if dtype is not None else stored[name].dtype
        shape = variable.get_value().shape
        return jax.ShapeDtypeStruct(shape, kept, sharding=placed.get(name, alone))

    bind, _ = split(model)
    return bind(ocp.load_checkpointables(path, {"model": tree_of(model, target)})["model"])


def _is_step(path: Path) -> bool:
    return (path / "_CHECKPOINT_METADATA").is_file()


def _steps(path: Path) -> list[Path]:
    """The complete steps of a run, oldest first."""
    folder = path / "checkpoints"
    steps = [step for step in folder.glob("*") if step.name.isdigit() and _is_step(step)]
    return sorted(steps, key=lambda step: int(step.name))
