"""Constants of a model: tensors computed from integers alone, such as positions and buckets.

A tiny change of them may change a decision, such as the bucket of a distance: then it is another
model that is computed. They are therefore computed as the reference computes them.
"""

from typing import Any

# Set on tensors that are constants. PyTorch keeps a tensor's attributes as long as the tensor.
MARK = "_is_constant"


def is_constant(func: Any, args: tuple, given: dict[str, Any]) -> bool:
    """Whether an operation with these arguments depends on no floating-point data."""
    import torch
    from torch.utils._pytree import tree_leaves

    if func is torch.ops.aten.lift_fresh.default:  # `torch.tensor(1.5)`: written in the code
        return True
    if func is torch.ops.aten._to_copy.default and given.get("dtype") in (
        torch.bfloat16,
        torch.float16,
    ):
        return False  # a table of angles, say, which another implementation need not round
    tensors = [x for x in tree_leaves((args, given)) if isinstance(x, torch.Tensor)]
    return all(not _is_inexact(x) or hasattr(x, MARK) for x in tensors)


def marked(result: Any) -> Any:
    """Marks a tensor as a constant."""
    import torch

    if isinstance(result, torch.Tensor) and _is_inexact(result):
        setattr(result, MARK, True)
    return result


def unmarked(result: Any) -> Any:
    """Unmarks a tensor that an operation has written to in place."""
    if hasattr(result, MARK):
        delattr(result, MARK)
    return result


def _is_inexact(tensor: Any) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
