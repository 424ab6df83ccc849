"""Exports a training run so that PyTorch can resume it: the weights and the AdamW state."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxllm.interop.families import Family, RuleTable
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array, from_jax
from jaxllm.interop.formats.pytorch import dcp_writer, torch_zip
from jaxllm.interop.formats.pytorch.torch_pickle import Placed
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import first_shard_prefix
from jaxllm.interop.loading.model_arrays import ModelArrays
from jaxllm.interop.loading.streaming.array_reads import find_arrays
from jaxllm.interop.saving.export import Export, choose_family, export_tensors, plan_export
from jaxllm.optimizer_state import AdamWState

from . import parameter_order
from .optimizer_file import NAMES, SCHEDULER
from .torch_adamw import MOMENTS, TorchAdamW


@dataclasses.dataclass(frozen=True)
class OptimizerExport:
    """The state of an optimizer and the format to write it in.

    Attributes:
        state: the state of AdamW.
        form: "state_dict" writes a PyTorch state dict to a file beside the weights; "dcp" writes
            it with the weights as a `torch.distributed.checkpoint`.
        order: the names of the PyTorch model's parameters in its order, which a state dict needs;
            only required where it cannot be found otherwise.
    """

    state: AdamWState
    form: Literal["state_dict", "dcp"] = "state_dict"
    order: Sequence[str] | None = None


def plan_training_export(
    model: ModelArrays,
    families: Sequence[Family],
    max_shard: int,
    optimizer: OptimizerExport,
    chosen: str | None = None,
) -> Export:
    """Plans a checkpoint with the state of its optimizer.

    Args:
        model: the model and its arrays.
        families: the candidate families; the first that supports the model is used.
        max_shard: the maximum size of a shard in bytes.
        optimizer: the state and its format.
        chosen: the format of the weights; by default the family's own.

    Raises:
        CheckpointError: no family supports the model, the weights are not float32, or a state dict
            is requested and the order of the parameters is unknown.
    """
    if not families:
        raise CheckpointError(
            "a native run already holds its optimizer state: copy the run instead"
        )
    check_resumable(model)
    export = plan_export(model, families, None, max_shard, chosen)
    family, fields, table = choose_family(model, families, None)
    prefix = first_shard_prefix(family.format)
    found = by_torch_names(model, table, optimizer.state, prefix)
    if optimizer.form == "dcp":
        return _in_dcp(export, table.tied, found)
    names = optimizer.order or parameter_order.find_order(export.family, fields, {})
    return _in_files(export, found, list(names))


def check_resumable(model: ModelArrays) -> None:
    """Raises CheckpointError, listing all reasons, if a run cannot be resumed from the weights."""
    if problems := [
        f"{name} is {array.dtype.name}, but resuming a run needs float32"
        for name, array in model.arrays.items()
        if array.dtype != np.float32
    ]:
        raise CheckpointError(problems)


def by_torch_names(
    model: ModelArrays, table: RuleTable, state: AdamWState, prefix: str
) -> TorchAdamW:
    """Converts the state to PyTorch's parameter names, without the prefix of the only shard."""
    bound = table.bound(model.stacks)
    replicas = dict(pair for rule in bound for pair in rule.replicas())
    decay: dict[str, float] = {}
    for rule, sizes in bound:
        for stored, index in rule.stored.names(sizes):
            if stored in replicas:
                continue
            for name in find_arrays(rule.model, index, sizes):
                whole = stored.partition("#")[0]
                if decay.setdefault(whole, state.weight_decay[name]) != state.weight_decay[name]:
                    raise CheckpointError(
                        f"{whole} holds arrays with different weight_decay, which PyTorch cannot "
                        "apply to parts of a parameter"
                    )

    def moments(arrays: Mapping[str, Any]) -> dict[str, TensorSource]:
        sources = {name: _source(array) for name, array in arrays.items()}
        every = dict(export_tensors(dataclasses.replace(model, arrays=sources), table))
        return {name.removeprefix(prefix): every[name] for name in decay}

    return TorchAdamW(
        step=state.step,
        exp_avg=moments(state.mu),
        exp_avg_sq=moments(state.nu),
        learning_rate=state.learning_rate,
        betas=(state.b1, state.b2),
        eps=state.eps,
        weight_decay={name.removeprefix(prefix): value for name, value in decay.items()},
    )


def _source(array: Any) -> TensorSource:
    """Wraps an array in memory, or one that is read in boxes, as a source."""
    if isinstance(array, jax.Array | np.ndarray):
        return from_jax(array)
    return TensorSource(array.dtype, array.shape, array.read)


def _in_files(export: Export, found: TorchAdamW, order: Sequence[str]) -> Export:
    """Adds the state dicts of the optimizer and the schedule, each in its own file."""
    moments = state_tensors(found)
    units = {name: f"{NAMES[0]}/{name}" for name in moments}
    state = optimizer_state_dict(found, order, {name: Placed(name) for name in moments})
    file = torch_zip.lay_out_value(NAMES[0], state, moments)
    optimizer = dataclasses.replace(
        file,
        places={units[name]: place for name, place in file.places.items()},
        checksums={units[name]: places for name, places in file.checksums.items()},
    )
    scheduler = torch_zip.lay_out_value(SCHEDULER, _schedule(found, len(state["param_groups"])), {})
    return dataclasses.replace(
        export,
        tensors={**export.tensors, **{units[name]: source for name, source in moments.items()}},
        files=(*export.files, optimizer, scheduler),
    )


def optimizer_state_dict(
    found: TorchAdamW, order: Sequence[str], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the state dict of PyTorch's AdamW: the group that decays first, then the other.

    Args:
        found: the state.
        order: the names of the parameters in the order of the PyTorch model.
        tensors: what stands for each tensor of `state_tensors`, by its name there.

    Raises:
        CheckpointError: `order` does not name the parameters of the state.
    """
    if wrong := sorted(found.exp_avg.keys() ^ set(order)):
        raise CheckpointError(
            f"the given order and the model name different parameters: {', '.join(wrong)}"
        )
    groups = [
        [name for name in order if found.weight_decay[name] == decay]
        for decay in sorted(set(found.weight_decay.values()), reverse=True)
    ]
    numbers = {name: i for i, name in enumerate(name for group in groups for name in group)}
    return {
        "state": {
            number: {what: tensors[f"{name}.{what}"] for what in ("step", *MOMENTS)}
            for name, number in numbers.items()
        },
        "param_groups": [
            {
                "param_names": group,
                **_options(found, group[0]),
                "params": [numbers[name] for name in group],
            }
            for group in groups
        ],
    }


def _in_dcp(export: Export, tied: Mapping[str, str], found: TorchAdamW) -> Export:
    """Puts weights, optimizer and schedule into one DCP checkpoint by name, as torchtitan does."""
    # A module's state dict includes tied tensors, and strict loading requires them.
    copies = {copy: export.tensors[original] for copy, original in tied.items()}
    prefix, tensors = first_shard_prefix(export.family.format), {**export.tensors, **copies}
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    state = {f"optimizer.state.{name}": tensor for name, tensor in state_tensors(found).items()}
    groups = {
        f"optimizer.param_groups.{name}.{option}": value
        for name in found.exp_avg
        for option, value in _options(found, name).items()
    }
    decays = len(set(found.weight_decay.values()))
    schedule = {f"lr_scheduler.{n}": value for n, value in _schedule(found, decays).items()}
    nested = [*state, *groups, *schedule]
    paths = {name: (name,) for name in weights} | {
        name: tuple(name.split(".", 1)) for name in nested
    }
    tensors = {**weights, **state}
    files = dcp_writer.lay_out(tensors, {**groups, **schedule}, paths)
    config_file = export.family.config_file  # an index file would list files that are not written
    texts = {name: text for name, text in export.texts.items() if name == config_file}
    return dataclasses.replace(export, tensors=tensors, files=tuple(files), texts=texts)


def state_tensors(found: TorchAdamW) -> dict[str, TensorSource]:
    """Returns the tensors of the state, named `PARAMETER.step`, `.exp_avg` and `.exp_avg_sq`."""
    # One step tensor per parameter: a shared one would be incremented once per parameter.
    step = from_array(np.array(found.step, np.float32))
    return {
        f"{name}.{what}": tensor
        for name in found.exp_avg
        for what, tensor in (
            ("step", step),
            ("exp_avg", found.exp_avg[name]),
            ("exp_avg_sq", found.exp_avg_sq[name]),
        )
    }


def _options(found: TorchAdamW, name: str) -> dict[str, Any]:
    """Returns the options of a parameter's group in PyTorch's AdamW."""
    return {
        "lr": found.learning_rate,
        "betas": found.betas,
        "eps": found.eps,
        "weight_decay": found.weight_decay[name],
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": True,
    }


def _schedule(found: TorchAdamW, num_groups: int) -> dict[str, Any]:
    """Returns the state of a PyTorch scheduler that has taken the same number of steps."""
    return {
        "last_epoch": found.step,
        "_step_count": found.step + 1,
        "_last_lr": [found.learning_rate] * num_groups,
        "lr_lambdas": [None] * num_groups,
    }
