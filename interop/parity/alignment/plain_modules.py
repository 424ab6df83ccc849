"""Plain PyTorch references: a user's own model, and the models of the source systems."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.interop.families import Family
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.checkpoint import open_checkpoint
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.loading.plan import analyze_checkpoint
from jaxllm.interop.loading.user_family import resolve_family
from jaxllm.interop.parity.alignment.references.overrides import attribute
from jaxllm.interop.parity.memory.array_store import ArrayStore, in_memory, parameters_on
from jaxllm.models import Model

from .adapters import FAMILY_ATTRIBUTE


def load_plain(
    path: Path,
    rules: Any = None,
    store: ArrayStore = in_memory,
    *,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> Any:
    """Builds the family's PyTorch model in float32 and loads the checkpoint at `path` into it.

    Args:
        path: the checkpoint.
        rules: conversion rules of a custom model, see docs/rules.md.
        store: the store for the parameters.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Raises:
        CheckpointError: the family defines no reference, or the reference's state dict does not
            match the checkpoint.
    """
    import torch

    checkpoint = open_checkpoint(path, rules, strict=strict, allow=allow)
    family, fields = checkpoint.family, dict(checkpoint.config)
    if family.reference is None:
        raise CheckpointError(
            f"{family.name} defines no reference, which builds the PyTorch model to compare with"
        )
    table = analyze_checkpoint(checkpoint).table
    with parameters_on(store):
        module = family.reference(fields).float()
    tensors = checkpoint.tensors.items()
    state = {name: torch.from_numpy(store(_plain(tensor.read()))) for name, tensor in tensors}
    try:
        absent, surplus = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # lists every shape that differs
        raise CheckpointError(str(error).splitlines(), f"{family.name}: reference") from None
    found = module.state_dict()
    given = {tensor.data_ptr() for name, tensor in found.items() if name not in absent}
    problems = [
        *(
            f"{name} is in the reference, but not in the checkpoint"
            for name in absent
            if found[name].data_ptr() not in given  # not tied to a tensor that was loaded
        ),
        *(
            f"{name} is in the checkpoint, but not in the reference"
            for name in surplus
            if reason_to_ignore(table, name) is None
        ),
    ]
    if problems:
        raise CheckpointError(problems, path)
    setattr(module, FAMILY_ATTRIBUTE, (family, fields))
    return module.eval()


def with_rules(reference: Any, model: Model, rules: Any) -> AbstractContextManager[Any]:
    """Within this context, a module in memory is a reference of the family that `rules` define.

    The reference's config is the file that `model` was loaded with, if it was loaded by the same
    rules; otherwise it is what the `fields` of the rules return for the config of `model`.

    Raises:
        CheckpointError: the rules cannot be read, or define no `fields` and need them.
    """
    family = resolve_family(rules)
    return attribute(reference, FAMILY_ATTRIBUTE, (family, _fields(family, model)))


def _fields(family: Family, model: Model) -> Json:
    if not family.config_file:
        return {}
    if model.origin is not None and model.origin.family == family.name:
        return json.loads(model.origin.config)
    try:
        return family.write_config(model.config, {})
    except ValueError as error:
        raise CheckpointError(
            f"{family.name} reads {family.config_file}, but the model was not loaded from one: "
            f"load it by these rules, or define `fields` in them: {error}"
        ) from None


def _plain(array: np.ndarray) -> np.ndarray:
    """Copies an array; converts floats to float32, since PyTorch does not take every dtype."""
    is_float = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return np.array(array, np.float32 if is_float else array.dtype)
