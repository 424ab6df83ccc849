"""Finds the parameter for each number in an optimizer's state that stores no names.

PyTorch numbers parameters in the order in which the groups list them. Within a group, that is the
order of `model.named_parameters()`; which parameters a group has can only be inferred from shapes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.interop.families import Family
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.formats.tensor_files import TORCH_SUFFIXES
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.untrusted.regular_files import read_bytes

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
MAX_STATES = 1000  # ways to take parameters from the groups that are followed at a time
MOST_SHOWN = 3  # parameters in a message
GIVE = (
    "give a file of the names, as `for name, _ in model.named_parameters(): print(name)` prints "
    "them"
)
GIVE_NAMED = (
    "give the state with names, as `get_optimizer_state_dict(model, optimizer)` of "
    "torch.distributed.checkpoint.state_dict returns it"
)


def named_groups(groups: Sequence[Sequence[Shape]], names: Shapes) -> list[list[str]]:
    """Assigns the names to groups by shape, in the order of `names` within each group.

    Args:
        groups: the shapes of each group's parameters, in order.
        names: the shapes of the model's parameters, by name and in order.

    Returns:
        The names of each group's parameters.

    Raises:
        CheckpointError: no way to assign them fits, or several do; names the groups and the first
            parameters that may be in several.
    """
    possible = _possible_groups(groups, names)
    sizes = [f"group {number} has {len(group)}" for number, group in enumerate(groups)]
    given = f"no parameter names are stored ({', '.join(sizes) or 'there is no group'})"
    fit = f"the model's {len(names)} parameters, in their order, fit the groups by shape"
    if sum(map(len, groups)) != len(names) or not all(possible.values()):
        raise CheckpointError(f"{given}, and {fit} in no way: {GIVE_NAMED}; or {GIVE}")
    if unclear := {name: numbers for name, numbers in possible.items() if len(numbers) > 1}:
        first = list(unclear)[:MOST_SHOWN]
        either = ", ".join(f"{name} in {' or '.join(map(str, unclear[name]))}" for name in first)
        more = f" and {len(unclear) - len(first)} more" if len(unclear) > len(first) else ""
        raise CheckpointError(
            f"{given}, and {fit} in several ways, such as {either}{more}: {GIVE_NAMED}"
        )
    assigned: list[list[str]] = [[] for _ in groups]
    for name, (number,) in possible.items():
        assigned[number].append(name)
    return assigned


def _possible_groups(
    groups: Sequence[Sequence[Shape]], names: Shapes
) -> dict[str, tuple[int, ...]]:
    """Returns the numbers of the groups that each parameter may be in; none if no way fits."""
    ends = {(0,) * len(groups)}  # how many parameters of each group are taken, in every way
    came: list[dict[tuple[int, ...], list[int]]] = []  # for each end, the groups that led to it
    for shape in names.values():
        after: dict[tuple[int, ...], list[int]] = {}
        for taken in ends:
            for number, group in enumerate(groups):
                if taken[number] < len(group) and group[taken[number]] == shape:
                    after.setdefault(_step(taken, number, 1), []).append(number)
        ends = set(after)
        came.append(after)
        if len(ends) > MAX_STATES:  # too many to follow
            return {
                name: tuple(number for number, group in enumerate(groups) if shape in group)
                for name, shape in names.items()
            }
    ends &= {tuple(map(len, groups))}
    possible: dict[str, tuple[int, ...]] = {}
    for name, after in zip(reversed(list(names)), reversed(came), strict=True):
        steps = [(end, number) for end in ends for number in after[end]]
        possible[name] = tuple(sorted({number for _, number in steps}))
        ends = {_step(end, number, -1) for end, number in steps}
    return {name: possible[name] for name in names}


def _step(taken: tuple[int, ...], number: int, by: int) -> tuple[int, ...]:
    return (*taken[:number], taken[number] + by, *taken[number + 1 :])


def read_names(path: Path) -> list[str]:
    """Reads names from a file, one per line. Raises CheckpointError if a name occurs twice."""
    try:
        names = read_bytes(path).decode().split()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from None
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise CheckpointError(f"{path}: {', '.join(twice)} occurs more than once")
    return names


def find_order(
    family: Family, fields: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> list[str]:
    """Returns the names of a checkpoint's tensors, in the order of the PyTorch model's parameters.

    Files of `torch.save` keep that order. For others, the model is built without weights, by the
    family's reference or by transformers, to read the order from it.

    Args:
        family: the family of the checkpoint.
        fields: the fields of its config file.
        stored: its tensors; empty if the checkpoint is yet to be written.

    Raises:
        CheckpointError: the order cannot be found.
        MissingPackageError: torch or transformers is needed and not installed.
    """
    is_ordered = stored and all(t.path.suffix in TORCH_SUFFIXES for t in stored.values())
    if family.reference is None and is_ordered:
        return list(stored)
    if (module := build_without_weights(family, fields)) is not None:
        return [name for name, _ in module.named_parameters()]
    raise CheckpointError(f"the order of the parameters of {family.name} is unknown: {GIVE}")


def build_without_weights(family: Family, fields: Mapping[str, Any]) -> Any:
    """Builds the PyTorch model of a config file; None if nothing builds it.

    Its parameters are on the meta device and take no memory. Its buffers have their numbers.

    Raises:
        MissingPackageError: torch or transformers is needed and not installed.
    """
    build = family.reference or (_build if family.format == "hf" else None)
    if build is None:
        return None
    torch, _ = require_torch()

    def without_numbers(module: Any, name: str, parameter: Any) -> Any:
        if parameter.is_meta:
            return None
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(without_numbers)
    try:
        return build(dict(fields))
    finally:
        hook.remove()


def _build(fields: Mapping[str, Any]) -> Any:
    """Builds the transformers model of a config file, of the class that it names."""
    _, transformers = require_torch()
    config = transformers.AutoConfig.for_model(**fields)
    architecture = getattr(transformers, (fields.get("architectures") or [""])[0], None)
    if architecture is None:
        return transformers.AutoModelForCausalLM.from_config(config)
    return architecture(config)
