"""The training step of a run with shapes in place of arrays, for devices that may not be there."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxllm.distributed.devices import check_float8
from jaxllm.models import Decoder, EncoderDecoder, Model, SequenceModel, SequenceToSequence
from jaxllm.sharding import MESH_AXES, named_sharding
from jaxllm.train.config import ConfigError, TrainConfig
from jaxllm.train.data import Documents, PreferencesConfig
from jaxllm.train.data.preference.config import PreferenceRows
from jaxllm.train.data.preference.pair import EncodedPair
from jaxllm.train.data.tasks import TaskConfig
from jaxllm.train.data.vectors import expected_shapes
from jaxllm.train.finetuning.start import model_to_train
from jaxllm.train.setup import check_rows
from jaxllm.train.step import Steps, make_steps

from .topology import Topology

Batch = dict[str, jax.ShapeDtypeStruct]
Rows = dict[str, tuple[tuple[int, ...], Any]]  # shape and dtype of each array of one example


def mesh_shape(config: TrainConfig) -> dict[str, int]:
    """Returns the size of each mesh axis of a run."""
    return {axis: getattr(config.mesh, axis) for axis in MESH_AXES}


def abstract_mesh(shape: Mapping[str, int], platform: str | None = None) -> AbstractMesh:
    """Returns a mesh without devices, whose programs are those of a platform ("tpu" or "cuda")."""
    named = {"cuda": "gpu"}.get(platform or "", platform)  # as JAX names its devices
    device = named and AbstractDevice(device_kind=named, num_cores=None, platform=named)
    types = (AxisType.Auto,) * len(shape)
    return AbstractMesh(tuple(shape.values()), tuple(shape), types, abstract_device=device or None)


def check_fits_topology(config: TrainConfig, topology: Topology) -> None:
    """Raises ConfigError, in one line, if the mesh or the batch does not fit the devices."""
    shape = mesh_shape(config)
    needed = int(np.prod([*shape.values()]))
    if needed != topology.size:
        named = " x ".join(f"{axis}={size}" for axis, size in shape.items() if size > 1)
        raise ConfigError(
            f"the mesh {named or 'of one device'} needs {needed} devices, but {topology} has "
            f"{topology.size}; set --mesh.AXIS, or --search"
        )
    if any(getattr(config.mesh.dcn, axis) > 1 for axis in MESH_AXES):
        raise ConfigError(
            "mesh.dcn: a topology is one slice; plan the mesh of one slice, with its share of "
            "batch_size"
        )
    check_rows(config, shape)
    if config.dtype == "float8":
        check_float8(topology.device)


def make_step_program(config: TrainConfig, mesh: Any) -> tuple[Steps, Batch]:
    """Returns the jitted functions of a run and the shapes of a batch, both on a mesh."""
    with _quiet():
        model = model_to_train(config, None)
    steps = make_steps(config, model, mesh)
    return steps, abstract_batch(config, model, mesh)


def trace_step(config: TrainConfig, mesh: AbstractMesh) -> tuple[Any, Steps, Batch]:
    """Traces the step of a run; returns its jaxpr, the functions and the batch."""
    steps, batch = make_step_program(config, mesh)
    with _quiet(), jax.sharding.use_abstract_mesh(mesh):
        return steps.train.trace(steps.abstract_state, batch).jaxpr, steps, batch


def abstract_batch(config: TrainConfig, model: Model, mesh: Any) -> Batch:
    """Returns the arrays of a batch of the run's data, without reading them."""
    B = config.batch_size
    placed = named_sharding("B", (B,), mesh)
    return {
        name: jax.ShapeDtypeStruct((B, *shape), dtype, sharding=placed)
        for name, (shape, dtype) in _rows(config, model).items()
    }


def _rows(config: TrainConfig, model: Model) -> Rows:
    """Returns the shape and dtype of each array of one example."""
    T = config.seq_len
    if isinstance(config.data, TaskConfig):
        drawn = config.data.load(model, T).train.take(np.arange(1))
        return {name: (array.shape[1:], array.dtype) for name, array in drawn.items()}
    if isinstance(model, SequenceModel | SequenceToSequence):
        inputs, targets = (shape[1:] for shape in expected_shapes(model, 1, T))
        return {
            "inputs": (inputs, np.float32),
            "targets": (targets, np.float32),
            "mask": (targets[:-1], np.bool_),
        }
    text: Rows = {"tokens": ((T + 1,), np.int32), "mask": ((T,), np.bool_)}
    if isinstance(model, EncoderDecoder):
        return {**text, "source": ((T,), np.int32), "source_mask": ((T,), np.bool_)}
    assert isinstance(model, Decoder), "the only other model of tokens"
    if isinstance(config.data, PreferencesConfig):
        rows = PreferenceRows([EncodedPair([0, 0], [0, 0], 1)], T).take([0])
        return {name: (array.shape[1:], array.dtype) for name, array in rows.items()}
    is_packed = isinstance(config.data, Documents) and config.data.packing != "joined"
    packed: Rows = dict.fromkeys(("segment_ids", "positions"), ((T,), np.int32))
    return {**text, **packed} if is_packed else text


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings, such as of long sequences, while nothing is computed."""
    log = logging.getLogger("jaxllm")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
