"""Removes the prefixes that training wrappers add to tensor names."""

import dataclasses
from collections.abc import Mapping

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def strip_wrappers(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors by their plain names. Raises CheckpointError if two names collide."""
    plain: dict[str, str] = {}
    problems = []
    for name in tensors:
        short = plain_name(name)
        if short in plain:
            problems.append(f"{plain[short]} and {name} are both {short} without wrapper prefixes")
        plain[short] = name
    if problems:
        raise CheckpointError(problems)
    return {short: dataclasses.replace(tensors[name], name=short) for short, name in plain.items()}


def without_prefix(tensors: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Returns the tensors by their names without a prefix that all of them have."""
    return {
        (short := name.removeprefix(prefix)): dataclasses.replace(tensor, name=short)
        for name, tensor in tensors.items()
    }


def plain_name(name: str) -> str:
    """Returns the name that a tensor had before the model was wrapped for training.

    Data parallelism puts `module.` in front of the name, `torch.compile` puts `_orig_mod.` before
    the compiled module's names, activation checkpointing and FSDP put
    `_checkpoint_wrapped_module.` and `_fsdp_wrapped_module.` before a layer's.
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts.pop(0)
    return ".".join(parts)
