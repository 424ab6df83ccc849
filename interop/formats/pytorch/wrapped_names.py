"""Tensor names of models that were wrapped for training, reduced to the model's own names."""

import dataclasses
from collections.abc import Mapping

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor


def strip_wrappers(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors by their plain names. Raises CheckpointError if two have the same."""
    plain: dict[str, str] = {}
    problems = []
    for name in tensors:
        short = plain_name(name)
        if short in plain:
            problems.append(f"{plain[short]} and {name} are both {short}")
        plain[short] = name
    if problems:
        raise CheckpointError(problems)
    return {short: dataclasses.replace(tensors[name], name=short) for short, name in plain.items()}


def plain_name(name: str) -> str:
    """Returns the name that a tensor had before the model was wrapped for training.

    Data parallelism puts `module.` in front, `torch.compile` puts `_orig_mod.` before what it
    compiled, and activation checkpointing puts `_checkpoint_wrapped_module.` before a layer.
    """
    wrappers = ("_orig_mod", "_checkpoint_wrapped_module")
    parts = [part for part in name.split(".") if part not in wrappers]
    while len(parts) > 1 and parts[0] == "module":
        parts.pop(0)
    return ".".join(parts)
