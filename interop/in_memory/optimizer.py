"""The state of PyTorch's AdamW in memory, in and out."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxllm.errors import UserError
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.pytorch.wrapped_names import plain_name
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import first_shard_prefix
from jaxllm.interop.loading.model_arrays import ModelArrays
from jaxllm.interop.loading.plan import Plan
from jaxllm.interop.loading.streaming.array_reads import read_arrays
from jaxllm.interop.optimizer_state.export_state import (
    by_torch_names,
    optimizer_state_dict,
    state_tensors,
)
from jaxllm.interop.optimizer_state.load_state import by_our_parameters, expected_parameters
from jaxllm.interop.optimizer_state.optimizer_file import OptimizerFile
from jaxllm.interop.optimizer_state.torch_adamw import read_adamw
from jaxllm.optimizer_state import AdamWState

from .module_config import InMemory
from .state_dict import hold_tensors
from .target import Target

PLACE = Path("optimizer")  # what messages call it


def read_optimizer(optimizer: Any, opened: InMemory, plan: Plan) -> AdamWState:
    """Reads the state of AdamW onto the devices of the parameters, in their layout.

    Args:
        optimizer: PyTorch's AdamW, or its state dict, by numbers or by names.
        opened: the model that it trains.
        plan: the plan for loading that model.

    Raises:
        CheckpointError: lists everything that is missing, not AdamW's or not of these parameters.
        UserError: it is neither an optimizer nor a state dict of one.
    """
    shapes, copies = expected_parameters(opened.checkpoint, plan)
    stored = _open(optimizer, opened)
    order = [name for name in _parameter_names(opened) if name in shapes]
    found = read_adamw(stored, shapes, copies, order)

    def read(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return read_arrays(dataclasses.replace(plan, tensors=tensors))

    return by_our_parameters(found, opened.checkpoint.family, plan, read)


def write_optimizer(
    state: AdamWState,
    model: ModelArrays,
    target: Target,
    read: Callable[[Mapping[str, TensorSource]], Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the state dict that PyTorch's AdamW loads.

    Args:
        state: the state of AdamW.
        model: the model that it trains.
        target: the module whose parameters it is for.
        read: returns tensors of PyTorch.

    Raises:
        CheckpointError: parts of a parameter decay differently, or the order of the parameters is
            not known.
    """
    found = by_torch_names(model, target.table, state, target.prefix)
    order = [name for name in target.parameters if name in found.exp_avg]
    return optimizer_state_dict(found, order, read(state_tensors(found)))


def _open(optimizer: Any, opened: InMemory) -> OptimizerFile:
    """Returns the optimizer's state as if it were read from a file."""
    if isinstance(optimizer, Mapping):
        state, groups = optimizer.get("state"), optimizer.get("param_groups")
    elif hasattr(optimizer, "param_groups"):
        state, groups = _by_names(optimizer, opened)
    else:
        state = groups = None
    if not isinstance(state, Mapping) or not isinstance(groups, list):
        raise UserError(
            f"optimizer={optimizer!r:.100} is neither an optimizer of PyTorch nor its state_dict() "
            "with 'state' and 'param_groups'"
        )
    entries = {
        (key, what): value for key, values in state.items() for what, value in values.items()
    }
    names = {place: f"{place[0]}.{place[1]}" for place in entries}
    tensors = hold_tensors({names[place]: value for place, value in entries.items()}, PLACE)
    held: dict[Any, dict[str, Any]] = {key: {} for key in state}
    for (key, what), value in entries.items():
        held[key][what] = tensors.get(names[key, what], value)
    return OptimizerFile(PLACE, held, groups, None)


def _by_names(optimizer: Any, opened: InMemory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the state of an optimizer and its groups, by the names that the module has."""
    if opened.module is None:
        raise UserError(
            "an optimizer knows no names: give the module instead of its state dict, or the "
            "optimizer's state_dict()"
        )
    names = {id(part): plain_name(name) for name, part in opened.module.named_parameters()}
    parts = [part for group in optimizer.param_groups for part in group["params"]]
    if strange := [tuple(part.shape) for part in parts if id(part) not in names]:
        raise CheckpointError(
            [f"a parameter of shape {shape} is not the module's" for shape in strange], PLACE
        )
    groups = [
        {**group, "params": [names[id(part)] for part in group["params"]], "param_names": None}
        for group in optimizer.param_groups
    ]
    return {names[id(part)]: dict(optimizer.state.get(part, {})) for part in parts}, groups


def _parameter_names(opened: InMemory) -> list[str]:
    """Returns the names of the parameters, in the order in which PyTorch numbers them."""
    if opened.module is None:
        prefix = first_shard_prefix(opened.checkpoint.family.format)
        return [name.removeprefix(prefix) for name in opened.checkpoint.tensors]
    return [plain_name(name) for name, _ in opened.module.named_parameters()]
