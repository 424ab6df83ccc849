"""Loads a PyTorch training run: the model and the state of its AdamW.

Moments are running averages of gradients and of their squares, so they have the layout of the
weights. Since a rule is a bijection of positions, the rule of a weight also applies to its moments.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from jaxllm.hub import local_path
from jaxllm.interop.families import Family
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.pytorch import dcp
from jaxllm.interop.formats.pytorch.saved import dcp_folder
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import first_shard_prefix
from jaxllm.interop.loading.checkpoint import identify_family, open_checkpoint, with_allowances
from jaxllm.interop.loading.checkpoint_dir import Checkpoint
from jaxllm.interop.loading.model_arrays import apply_rules, make_origin
from jaxllm.interop.loading.plan import Plan, make_plan, split_fused
from jaxllm.interop.loading.streaming.array_reads import find_arrays
from jaxllm.interop.loading.tied_tensors import check_copies
from jaxllm.models import Model, build_abstract
from jaxllm.optimizer_state import AdamWState
from jaxllm.params import parameter_shardings, with_arrays

from . import optimizer_file, parameter_order
from .optimizer_file import OptimizerFile
from .torch_adamw import TorchAdamW, read_adamw

MODEL = "model."


def load_training_state(
    path: str | Path,
    *,
    optimizer: str | Path | None = None,
    names: str | Path | None = None,
    mesh: Mesh | None = None,
    rules: Any = None,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> tuple[Model, AdamWState]:
    """Loads the model at `path` and the state of PyTorch's AdamW, in float32.

    Args:
        path: a folder as for `load_pretrained`; its weights may also be in DCP files.
        optimizer: the optimizer's file or DCP folder; by default the one in the folder.
        names: a file with the parameters' names in the model's order, one per line, for a state
            that numbers the parameters and does not store their names.
        mesh: the mesh to place the arrays on; by default the first device holds all of them.
        rules: rules of your own, as described in docs/rules.md.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Returns:
        The model and its AdamW state, placed alike.

    Raises:
        CheckpointError: lists everything that is damaged, missing or not AdamW's.
    """
    path = local_path(path)
    folder = path if path.is_dir() else path.parent
    place = Path(optimizer) if optimizer is not None else optimizer_file.find(folder)
    if dcp.is_dcp(place):
        contents = dcp.read(place)
        stored = optimizer_file.read_dcp(place, contents)
        checkpoint = _checkpoint_of(path, rules, contents, stored)
    else:
        stored = optimizer_file.read(place)
        checkpoint = open_checkpoint(path, rules)
    checkpoint = with_allowances(checkpoint, strict=strict, allow=allow)
    plan = make_plan(checkpoint, mesh=mesh)
    check_resumable(checkpoint, plan)
    check_copies(plan, checkpoint.path)
    found = read_adamw(
        stored, *expected_parameters(checkpoint, plan), _order(stored, checkpoint, plan, names)
    )
    return _on_devices(checkpoint, plan, found, mesh)


def _checkpoint_of(
    path: Path, rules: Any, contents: dcp.Contents, stored: OptimizerFile
) -> Checkpoint:
    """Returns the model saved with the optimizer, or else the one in the folder."""
    own = dcp_folder.weights(contents)
    if not own:
        return open_checkpoint(path, rules)
    trained = set(stored.state)
    if not trained & own.keys() and trained & {name.removeprefix(MODEL) for name in own}:
        own = {name.removeprefix(MODEL): tensor for name, tensor in own.items()}
    family, fields = identify_family(path, rules)
    prefix = first_shard_prefix(family.format)
    tensors: Any = {
        prefix + name: dataclasses.replace(tensor, name=prefix + name)
        for name, tensor in own.items()
    }
    return Checkpoint(path, family, fields, tensors)


def check_resumable(checkpoint: Checkpoint, plan: Plan) -> None:
    """Raises CheckpointError, listing all reasons, if no run can be resumed from the weights."""
    problems = [
        f"{name} is {array.stored.name}, but resuming a run needs float32"
        for name, array in plan.arrays.items()
        if array.stored != np.float32
    ]
    if plan.layout.model_parallel > 1:
        problems.append(
            "optimizers of model-parallel checkpoints, one per shard, are not supported"
        )
    if problems:
        raise CheckpointError(problems, checkpoint.path)


def expected_parameters(
    checkpoint: Checkpoint, plan: Plan
) -> tuple[dict[str, tuple[int, ...]], dict]:
    """Returns the shapes of the parameters and the tied copies, by PyTorch's names."""
    prefix = first_shard_prefix(checkpoint.family.format)
    copies = dict(pair for rule in plan.rules for pair in rule.replicas()) | plan.table.tied
    whole = dict.fromkeys(
        name.partition("#")[0]
        for rule in plan.rules
        for name, _ in rule.stored()
        if name not in copies
    )
    shapes = {name.removeprefix(prefix): checkpoint.tensors[name].shape for name in whole}
    named = {
        c.removeprefix(prefix): original.removeprefix(prefix) for c, original in copies.items()
    }
    return shapes, named


def _order(
    stored: OptimizerFile, checkpoint: Checkpoint, plan: Plan, names: str | Path | None
) -> Sequence[str] | None:
    """Returns the parameters in the model's order, or None if the state names them."""
    if names is not None:
        return parameter_order.read_names(Path(names))
    if stored.is_named:
        return None
    prefix = first_shard_prefix(checkpoint.family.format)
    shapes, _ = expected_parameters(checkpoint, plan)
    found = parameter_order.find_order(checkpoint.family, checkpoint.config, checkpoint.tensors)
    return [name for name in (n.removeprefix(prefix) for n in found) if name in shapes]


def _on_devices(
    checkpoint: Checkpoint, plan: Plan, found: TorchAdamW, mesh: Mesh | None
) -> tuple[Model, AdamWState]:
    """Reads the model and the moments onto their devices."""
    abstract = build_abstract(plan.config)
    placed = {} if mesh is None else parameter_shardings(abstract, mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])

    def read(tensors: Mapping[str, Any]) -> dict[str, jax.Array]:
        sources = apply_rules(plan.rules, tensors)
        return {name: _array(source, placed.get(name, alone)) for name, source in sources.items()}

    model = with_arrays(abstract, read(plan.tensors))
    model.origin = make_origin(checkpoint, plan)
    return model, by_our_parameters(found, checkpoint.family, plan, read)


def by_our_parameters(
    found: TorchAdamW,
    family: Family,
    plan: Plan,
    read: Callable[[Mapping[str, Any]], Mapping[str, jax.Array]],
) -> AdamWState:
    """Converts the state to the names and the layout of our parameters.

    Args:
        found: the state by PyTorch's names.
        family: the family of the parameters.
        plan: the plan for loading them.
        read: returns the arrays that the rules of the plan make of stored tensors.

    Raises:
        CheckpointError: the tensors of one array decay differently.
    """
    prefix = first_shard_prefix(family.format)

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        return {prefix + name: value for name, value in values.items()}

    return AdamWState(
        step=found.step,
        mu=read(split_fused(plan.rules, named(found.exp_avg))),
        nu=read(split_fused(plan.rules, named(found.exp_avg_sq))),
        learning_rate=found.learning_rate,
        b1=found.betas[0],
        b2=found.betas[1],
        eps=found.eps,
        weight_decay=_by_our_names(plan, named(found.weight_decay)),
    )


def _array(source: TensorSource, sharding: Sharding) -> jax.Array:
    """Places an array on its devices, reading each device's part separately."""

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        pairs = zip(index or (), source.shape, strict=True)
        return source.read([dim.indices(size)[:2] for dim, size in pairs])

    return jax.make_array_from_callback(source.shape, sharding, part)


def _by_our_names(plan: Plan, values: Mapping[str, float]) -> dict[str, float]:
    """Maps values per stored tensor to the model's arrays.

    Raises CheckpointError if the tensors of one array have different values.
    """
    found: dict[str, dict[float, str]] = {}
    replicas = dict(pair for rule in plan.rules for pair in rule.replicas())
    for rule, sizes in plan.rules:
        for stored, index in rule.stored.names(sizes):
            if stored in replicas:
                continue
            whole = stored.partition("#")[0]
            for name in find_arrays(rule.model, index, sizes):
                found.setdefault(name, {}).setdefault(values[whole], whole)
    if problems := [
        f"weight_decay differs between {' and '.join(by.values())}, but they form one array here"
        for by in found.values()
        if len(by) > 1
    ]:
        raise CheckpointError(problems)
    return {name: next(iter(by)) for name, by in found.items()}
