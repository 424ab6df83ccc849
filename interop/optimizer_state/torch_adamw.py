"""Checks and reads the state of PyTorch's AdamW: every parameter, moment and group option."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.errors import did_you_mean, listed
from jaxllm.interop.formats.pytorch.wrapped_names import plain_name
from jaxllm.interop.formats.sharded_tensor import ShardedTensor
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.loading.name_folding import fold

from .optimizer_file import OptimizerFile, Options
from .parameter_order import Shapes, named_groups

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = ("step", *MOMENTS)
# Options that change no number: names, and how the update is computed.
FREE = {
    *("params", "param_names", "name", "initial_lr"),
    *("foreach", "capturable", "differentiable", "fused"),
}
NUMBERS = ("lr", "eps", "weight_decay")
# PyTorch writes the last one since 2.6, also for Adam, where it is False.
REQUIRED = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": True}
OPTIONAL = ("maximize", "decoupled_weight_decay")  # not written by older PyTorch


class TorchAdamW(NamedTuple):
    """The state of AdamW by PyTorch's parameter names, with the options that all groups share.

    Moments are lazy: stored tensors, or sources of arrays to be written.
    """

    step: int
    exp_avg: Mapping[str, Any]
    exp_avg_sq: Mapping[str, Any]
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: Mapping[str, float]


def read_adamw(
    stored: OptimizerFile, shapes: Shapes, copies: Mapping[str, str], order: Sequence[str] | None
) -> TorchAdamW:
    """Reads the state of AdamW for parameters of these shapes.

    Args:
        stored: the contents of the file.
        shapes: the shapes of the model's parameters, by PyTorch's names.
        copies: maps the names of tied copies to the names of their originals.
        order: the parameters in the model's order, for a state that numbers them.

    Raises:
        CheckpointError: lists everything that is not AdamW's or does not fit the model.
    """
    named = _named(stored, shapes, order)
    found = {name: entry for name, (entry, _) in named.items()}
    problems = [
        *_check_names(found, shapes, copies),
        *(
            f"{name}: {problem}"
            for name, entry in found.items()
            if name in shapes
            for problem in _check_entry(entry, shapes[name])
        ),
        *_check_groups(stored.groups),
    ]
    steps = {name: _number(entry.get("step")) for name, entry in found.items()}
    problems += _check_steps(steps, stored.schedule)
    if problems:
        raise CheckpointError(problems, stored.path)
    options = stored.groups[0]
    b1, b2 = map(float, map(_number, options["betas"]))
    return TorchAdamW(
        step=int(next(iter(steps.values()))),
        exp_avg={name: found[name]["exp_avg"] for name in shapes},
        exp_avg_sq={name: found[name]["exp_avg_sq"] for name in shapes},
        learning_rate=_number(options["lr"]),
        betas=(b1, b2),
        eps=_number(options["eps"]),
        weight_decay={name: _number(named[name][1]["weight_decay"]) for name in shapes},
    )


Named = dict[str, tuple[Options, Options]]  # by name: the parameter's state and its group


def _named(stored: OptimizerFile, shapes: Shapes, order: Sequence[str] | None) -> Named:
    """Maps every parameter, by its name in the unwrapped model, to its state and group."""
    by_group = [_names(group, stored) for group in stored.groups]
    if all(names is not None for names in by_group):
        assigned = [[plain_name(name) for name in names or ()] for names in by_group]
    else:
        assigned = _assign_names(stored, shapes, order or ())
    named: Named = {}
    problems = []
    for group, names in zip(stored.groups, assigned, strict=True):
        for key, name in zip(group["params"], names, strict=True):
            if name in named:
                problems.append(f"{name} is listed twice in the param_groups")
            named[name] = stored.state.get(key, {}), group
    grouped = {key for group in stored.groups for key in group["params"]}
    problems += [
        f"parameter {key} has state but is in no group"
        for key in stored.state
        if key not in grouped
    ]
    if problems:
        raise CheckpointError(problems, stored.path)
    return named


def _names(group: Options, stored: OptimizerFile) -> list[str] | None:
    """Returns the names of a group's parameters, or None if it only numbers them."""
    keys, names = group["params"], group.get("param_names")
    if all(isinstance(key, str) for key in keys):
        return keys
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != len(keys) or not _are_texts(names):
        raise CheckpointError(f"{stored.path}: a group's param_names do not match its params")
    return names


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _assign_names(stored: OptimizerFile, shapes: Shapes, order: Sequence[str]) -> list[list[str]]:
    """Assigns names to numbered parameters, by the order and shapes of the model's parameters."""
    keys = [list(group["params"]) for group in stored.groups]
    known = {
        key: moment.shape
        for key, entry in stored.state.items()
        if isinstance(moment := entry.get("exp_avg"), StoredTensor | ShardedTensor)
    }
    if missing := [key for group in keys for key in group if key not in known]:
        numbers = ", ".join(map(str, missing))
        raise CheckpointError(
            [f"parameters {numbers:.100} have no exp_avg, which AdamW stores for each"], stored.path
        )
    unknown = sorted(set(shapes).symmetric_difference(order))
    if unknown:
        raise CheckpointError(
            [f"the given order and the model name different parameters: {', '.join(unknown):.300}"],
            stored.path,
        )
    in_order = {name: shapes[name] for name in order}
    try:
        return named_groups([[known[key] for key in group] for group in keys], in_order)
    except CheckpointError as error:
        raise CheckpointError(error.problems, stored.path) from None


def _check_names(
    found: Mapping[str, Options], shapes: Shapes, copies: Mapping[str, str]
) -> Iterator[str]:
    """Reports parameters without moments, and moments without a parameter."""
    without = [name for name in shapes if not found.get(name)]
    strange = [name for name in found if name not in shapes]
    yield from listed(
        fold(dict.fromkeys(without)),
        lambda group: f"no moments for {group.name}" + did_you_mean(group.members[0], strange),
    )
    yield from listed(
        fold({name: copies.get(name) for name in strange}),
        lambda group: (
            f"{group.name} has moments of its own, but is tied to {copies[group.members[0]]}"
            if copies.get(group.members[0])
            else f"moments for {group.name}, which is not a parameter of the model"
            + did_you_mean(group.name, without)
        ),
    )


def _check_entry(entry: Options, shape: tuple[int, ...]) -> Iterator[str]:
    """Reports what is wrong with the state of a parameter; one without state is skipped."""
    if not entry:
        return
    for what in entry:
        if what == "max_exp_avg_sq":
            yield "it has max_exp_avg_sq of amsgrad, which optax's AdamW does not support"
        elif what not in STATE:
            yield f"it has {what}, which is not part of AdamW's state"
    for what in MOMENTS:
        moment = entry.get(what)
        if not isinstance(moment, StoredTensor | ShardedTensor):
            yield f"it has no {what}"
        elif moment.shape != shape:
            yield f"{what} has shape {list(moment.shape)}, but the parameter has {list(shape)}"
        elif moment.dtype != np.float32:
            yield f"{what} is {moment.dtype.name}, but resuming a run needs float32"


def _check_groups(groups: Sequence[Options]) -> Iterator[str]:
    """Reports options that are not AdamW's, or that differ between groups and must not."""
    if not groups:
        yield "it has no param_groups"
    for number, group in enumerate(groups):
        yield from (f"group {number}: {problem}" for problem in _check_options(group))
    for name in ("lr", "betas", "eps"):
        values = {repr(group[name]): None for group in groups if name in group}
        if len(values) > 1:
            yield f"{name} differs between groups ({' and '.join(values)}), but must be the same"
    decays = {_number(group.get("weight_decay")) for group in groups} - {0.0}
    if len(decays) > 1:
        given = " and ".join(map(str, sorted(decays)))
        yield f"weight_decay differs between groups that decay ({given}), but must be the same"


def _check_options(group: Options) -> Iterator[str]:
    """Reports options that are missing, not AdamW's, or not supported by optax's AdamW."""
    for name, value in group.items():
        if name in REQUIRED and value is not REQUIRED[name]:
            yield f"{name}={value!r} is not supported, only {REQUIRED[name]!r}"
        elif name in NUMBERS and not math.isfinite(_number(value)):
            yield f"{name}={value!r:.50} is not a number"
        elif name not in {*FREE, *NUMBERS, *REQUIRED, "betas"}:
            yield f"{name}={value!r:.50} is not an option of AdamW"
    for name in ("betas", *NUMBERS, *REQUIRED):
        if name not in group and name not in OPTIONAL:
            yield f"{name} is missing, which AdamW writes"
    betas = group.get("betas", (0.0, 0.0))
    if not isinstance(betas, tuple | list) or len(betas) != 2 or not _are_betas(betas):
        yield f"betas={betas!r:.50} is not two numbers in [0, 1)"


def _are_betas(values: Sequence[object]) -> bool:
    return all(0 <= _number(value) < 1 for value in values)


def _check_steps(steps: Mapping[str, float], schedule: int | None) -> Iterator[str]:
    """Reports step counts that are invalid or not the same for all parameters."""
    found = {step for step in steps.values() if not math.isnan(step)}
    if len(found) > 1:
        first, last = min(steps, key=steps.__getitem__), max(steps, key=steps.__getitem__)
        yield (
            f"parameters have taken different numbers of steps: {first} {min(found):g}, "
            f"{last} {max(found):g}"
        )
        return
    if len(found) < 1 or math.isnan(sum(steps.values())):
        yield "some parameters have no step count: no step was taken, or not by AdamW"
        return
    (step,) = found
    if step < 1 or step != int(step) or step >= 2**24:  # stored as float32
        yield f"step={step:g} is not a whole number from 1 to 2**24 - 1, which float32 can count"
    elif schedule is not None and schedule != step:
        yield f"the learning rate schedule has taken {schedule} steps, but AdamW {step:g}"


def _number(value: Any) -> float:
    """Returns a number or the value of a one-element tensor as a float; NaN for anything else."""
    if isinstance(value, StoredTensor | ShardedTensor):
        shape: tuple[int, ...] = value.shape
        if math.prod(shape) == 1 and value.dtype.kind in "fiu":
            return float(value.read([(0, size) for size in shape]).reshape(()))
        return math.nan
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 2.0**1000 else math.nan
