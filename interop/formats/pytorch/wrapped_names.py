"""Removes the prefixes that training wrappers add to tensor names."""

import dataclasses
from collections.abc import Mapping

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

# Names outside of the model without its head.
HEADS = ("lm_head.", "score.", "v_head.", "embed_out.")
LAYERS = "layers."  # of a model without its head
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


def with_base_prefix(tensors: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Returns the tensors by the names that a model with a head has.

    Adds the prefix of the model without its head, if all names lack it, and removes it once if a
    trainer such as Lightning has put it before all names, the head's among them.

    Args:
        tensors: the tensors by name.
        prefix: such as `model.`; "" if the names do not depend on it.
    """
    without = [name.removeprefix(prefix) for name in tensors]
    renamed = {}
    if prefix and all(name.startswith(prefix) for name in tensors):
        if any(name.startswith((prefix, *HEADS)) for name in without):
            renamed = dict(zip(tensors, without, strict=True))
    elif prefix and without == list(tensors) and any(n.startswith(LAYERS) for n in without):
        renamed = {name: prefix + name for name in tensors if not name.startswith(HEADS)}
    return {
        new: dataclasses.replace(tensor, name=new)
        for new, tensor in ((renamed.get(name, name), tensors[name]) for name in tensors)
    }
