"""Checkpoints to models: every device shard is read from the bytes that hold it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from jaxllm.config import Dtype
from jaxllm.models import build_abstract
from jaxllm.models.decoder import Decoder
from jaxllm.origin import Origin
from jaxllm.params import shardings, with_arrays

from . import native
from .directory import open_checkpoint
from .plan import Assembly, Plan, make_plan
from .tensors import CheckpointError, StoredTensor


def load_pretrained(
    path: str | Path, *, mesh: Mesh | None = None, dtype: Dtype | None = None
) -> Decoder:
    """The model stored at `path`: a folder of Hugging Face, of Meta, of tlama, or a native one.

    Args:
        path: the folder.
        mesh: where the parameters are to live, each device's part loaded straight to it; by
            default all of them on the first device.
        dtype: of the parameters and the activations; by default each parameter's own, as stored.

    Raises:
        CheckpointError: the folder is not a checkpoint, or a tensor is missing, unexpected or
            mis-shaped, or a field of its config is not understood. Lists everything wrong.
    """
    if dtype not in (None, *get_args(Dtype)):
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(get_args(Dtype))}")
    path = Path(path)
    if native.is_native(path):
        return native.load(path, mesh=mesh, dtype=dtype)
    checkpoint = open_checkpoint(path)
    plan = make_plan(checkpoint)
    _check_copies(plan, path)
    config = plan.config
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=dtype, dtype=dtype)
    model = build_abstract(config)
    placed = {} if mesh is None else shardings(model, mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])
    arrays = {
        name: _place(assembly, plan.tensors, placed.get(name, alone), dtype)
        for name, assembly in plan.assemblies.items()
    }
    model = with_arrays(model, arrays)
    model.origin = Origin(
        family=checkpoint.family.name,
        config=json.dumps(checkpoint.config),
        layout=json.dumps(dataclasses.asdict(plan.layout)),
        directory=str(path.resolve()),
    )
    return model


def _place(
    assembly: Assembly,
    tensors: Mapping[str, StoredTensor],
    sharding: Sharding,
    dtype: Dtype | None,
) -> jax.Array:
    """The array on its devices. What several devices hold is read once."""
    shape = assembly.shape()
    boxes: dict[tuple, np.ndarray] = {}
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        parts = zip(index or (), shape, strict=True)
        box = tuple(part.indices(size)[:2] for part, size in parts)
        if box not in boxes:
            part = assembly.read(tensors, box)
            boxes[box] = part if dtype is None else part.astype(np.dtype(dtype))
        shards.append(jax.device_put(boxes[box], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _check_copies(plan: Plan, path: Path) -> None:
    """Refuses copies that are not copies: tied heads and tensors replicated over the shards."""
    tensors = plan.tensors
    pairs = [(copy, original) for copy, original in plan.table.tied.items() if copy in tensors]
    for rule, sizes in plan.rules:
        if rule.replicated:
            for name, index in rule.stored.names(sizes):
                original = {**index, **dict.fromkeys(rule.replicated, 0)}
                pairs.append((name, rule.stored.spell(original, sizes)))
    if problems := [
        f"{copy} should be a copy of {original} but differs from it"
        for copy, original in pairs
        if tensors[copy].open().tobytes() != tensors[original].open().tobytes()
    ]:
        raise CheckpointError(problems, path)
