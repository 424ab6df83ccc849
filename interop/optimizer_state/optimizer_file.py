"""Reads the files of a PyTorch optimizer: a saved state dict, or a part of a DCP folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.interop.formats.pytorch import dcp
from jaxllm.interop.formats.pytorch.saved import torch_file
from jaxllm.interop.formats.stored_tensor import CheckpointError

NAMES = ("optimizer.pt", "optimizer.pth", "optim.pt", "optim.pth")
SCHEDULER = "scheduler.pt"  # beside the optimizer's file; the name that transformers' Trainer uses
PREFIXES = ("optimizer.", "optim.", "")  # of names in a DCP folder

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimizerFile:
    """The stored state of an optimizer, not yet checked to be AdamW's.

    Parameters are keyed by name or by number; numbered groups may list their names.
    """

    path: Path
    state: Mapping[Any, Mapping[str, Any]]  # tensors and numbers, by parameter
    groups: Sequence[Options]  # each with the keys of its parameters, `params`
    schedule: int | None  # steps of the stored learning rate schedule, if there is one

    @property
    def is_named(self) -> bool:
        """Whether the name of every parameter is stored."""
        return all(
            "param_names" in group or all(isinstance(key, str) for key in group["params"])
            for group in self.groups
        )


def find(folder: Path) -> Path:
    """Finds the optimizer's state in a folder. Raises CheckpointError for none or several."""
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    found += [folder] if dcp.is_dcp(folder) else []
    if len(found) != 1:
        known = f"{', '.join(NAMES)} and {dcp.METADATA}"
        what = " and ".join(path.name for path in found) or f"none of {known}"
        raise CheckpointError(f"{folder} has {what}: give the optimizer's file or DCP folder")
    return found[0]


def read(path: Path) -> OptimizerFile:
    """Opens the state at `path`, a file or a DCP folder, without reading the moments.

    Raises CheckpointError if it is damaged or not the state of an optimizer.
    """
    if dcp.is_dcp(path):
        return read_dcp(path, dcp.read(path))
    if not path.is_file():
        raise CheckpointError(f"{path} is neither a file nor a DCP folder")
    value = _load(path)
    match value:
        case {"state": dict() as state, "param_groups": list() as groups} if _fits(state, groups):
            return OptimizerFile(path, state, groups, _read_schedule(path.with_name(SCHEDULER)))
    keys = f" with {', '.join(map(repr, value))}" if isinstance(value, dict) else ""
    raise CheckpointError(
        f"{path} is a {type(value).__name__}{keys:.200}, not an optimizer's state_dict() "
        "with 'state' and 'param_groups'"
    )


def _load(path: Path) -> Any:
    try:
        return torch_file.read_value(path)
    except CheckpointError as error:
        raise CheckpointError(error.within(path)) from None


def _fits(state: Mapping, groups: Sequence) -> bool:
    """Whether every entry has the type that PyTorch writes."""
    listed = [group.get("params") if isinstance(group, dict) else None for group in groups]
    keys = [key for keys in listed if isinstance(keys, list) for key in keys]
    return (
        all(isinstance(one, list) for one in listed)
        and all(isinstance(entry, dict) for entry in state.values())
        and all(isinstance(key, str | int) for key in [*keys, *state])
    )


def _read_schedule(path: Path) -> int | None:
    """Returns the number of steps in a scheduler's file, if there is one."""
    match _load(path) if path.is_file() else None:
        case {"last_epoch": int(last)}:
            return last
    return None


def read_dcp(path: Path, contents: dcp.Contents) -> OptimizerFile:
    """Reads the optimizer's part of a DCP folder, with groups listed or flattened (torchtitan).

    Raises CheckpointError if there is none.
    """
    names = [*contents.tensors, *contents.values]
    found = [p for p in PREFIXES if any(name.startswith(f"{p}param_groups.") for name in names)]
    if not found:
        raise CheckpointError(
            f"{path} holds no optimizer: no name has the form 'optimizer.param_groups.*'"
        )
    prefix = found[0]
    sections = (f"{prefix}state.", f"{prefix}param_groups.")
    values = {name: value() for name, value in contents.values.items() if name.startswith(sections)}
    state: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for name, value in {**contents.tensors, **values}.items():
        section, _, rest = name.removeprefix(prefix).partition(".")
        key, _, what = rest.rpartition(".")
        if name.startswith(sections):
            (state if section == "state" else options).setdefault(key, {})[what] = value
    groups = list(options.values())
    if not all("params" in group for group in groups):  # flattened: one group per parameter
        groups = [{**group, "params": [name]} for name, group in options.items()]
    if not _fits(state, groups):
        raise CheckpointError(f"{path}: its param_groups do not list their parameters")
    last = contents.values.get("lr_scheduler.last_epoch", lambda: None)()
    return OptimizerFile(path, state, groups, last if isinstance(last, int) else None)
