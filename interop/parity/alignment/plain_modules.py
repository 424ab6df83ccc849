"""References that are plain PyTorch: a user's own model, and those of the source systems."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.interop.families import Family
from jaxllm.interop.families.common.family import Json
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.loading.plan import analyze_checkpoint
from jaxllm.interop.loading.user_family import open_checkpoint, resolve_family
from jaxllm.interop.parity.numerics.array_store import Shelf, in_memory, parameters_on
from jaxllm.models import Model

from .adapters import OWN
from .overrides import attribute


def load_plain(path: Path, rules: Any = None, shelf: Shelf = in_memory) -> Any:
    """The model that the checkpoint's family makes, in float32, with the weights at `path`.

    Its parameters lie on the shelf. Raises CheckpointError if the family makes none, or one whose
    state is not what is stored.
    """
    import torch

    checkpoint = open_checkpoint(path, rules)
    family, fields = checkpoint.family, dict(checkpoint.config)
    if family.reference is None:
        raise CheckpointError(f"{family.name} defines no reference, the model to compare with")
    table = analyze_checkpoint(checkpoint).table
    with parameters_on(shelf):
        module = family.reference(fields).float()
    tensors = checkpoint.tensors.items()
    state = {name: torch.from_numpy(shelf(_plain(tensor.open()))) for name, tensor in tensors}
    try:
        absent, surplus = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of shapes, all in one
        raise CheckpointError(str(error).splitlines(), f"{family.name}: reference") from None
    found = module.state_dict()
    given = {tensor.data_ptr() for name, tensor in found.items() if name not in absent}
    problems = [
        *(
            f"the reference has {name}, which is not stored"
            for name in absent
            if found[name].data_ptr() not in given  # not a copy of what is
        ),
        *(
            f"{name} is stored, which the reference does not have"
            for name in surplus
            if reason_to_ignore(table, name) is None
        ),
    ]
    if problems:
        raise CheckpointError(problems, path)
    setattr(module, OWN, (family, fields))
    return module.eval()


def described(reference: Any, model: Model, rules: Any) -> AbstractContextManager[Any]:
    """A module in memory, as long as it is said to be what rules of a user are about.

    Its config is the file that our model came with by the same rules. Of one that came from
    elsewhere it is what their `fields` make of its config.

    Raises CheckpointError if there are no rules, or no fields.
    """
    family = resolve_family(rules)
    return attribute(reference, OWN, (family, _fields(family, model)))


def _fields(family: Family, model: Model) -> Json:
    if not family.config_file:
        return {}
    if model.origin is not None and model.origin.family == family.name:
        return json.loads(model.origin.config)
    try:
        return family.write_config(model.config, {})
    except ValueError as error:
        raise CheckpointError(
            f"{family.name} reads {family.config_file}, which the model did not come with: load it "
            f"by these rules, or let them define `fields` of its config: {error}"
        ) from None


def _plain(array: np.ndarray) -> np.ndarray:
    """A copy in float32 of what has another float's dtype, which PyTorch may not take."""
    is_float = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return np.array(array, np.float32 if is_float else array.dtype)
