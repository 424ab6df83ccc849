"""Operations of PyTorch that write to their arguments, such as `x.add_(y)` and `x[:, 1] = y`."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jaxllm.errors import UserError

from .constants import MARK, is_constant, unmarked

if TYPE_CHECKING:
    from torch import Tensor


def in_float64(func: Any, args: tuple, given: dict[str, Any], widened: Callable[[Any], Any]) -> Any:
    """Runs an operation in float64 that writes to tensors, which become float64 themselves.

    Args:
        func: the operation.
        args: its arguments.
        given: its keyword arguments.
        widened: returns a tensor in float64, other values as they are.

    Raises:
        UserError: the module keeps a tensor that is written to, and that rounds what is written.
    """
    from torch.utils._pytree import tree_map

    if is_constant(func, args, given):
        return func(*args, **given)
    targets = written(func, args, given)
    if any(_is_kept(target, widened) for target in targets):
        return _written_without_loss(func, args, given, widened)
    for target in targets:
        _widen(target, widened)
    own = set(map(id, targets))
    args, given = tree_map(lambda x: x if id(x) in own else widened(x), (args, given))
    return func(*args, **given)


def _is_kept(target: "Tensor", widened: Callable[[Any], Any]) -> bool:
    """Whether a narrow tensor is not of this run, such as a buffer of the module."""
    base = target if target._base is None else target._base
    return widened(base) is not base and not hasattr(base, MARK)


def _written_without_loss(
    func: Any, args: tuple, given: dict[str, Any], widened: Callable[[Any], Any]
) -> Any:
    """Writes to a tensor that the module keeps, such as the frequencies of LongRoPE."""
    import torch
    from torch.utils._pytree import tree_map

    targets, returning = written(func, args, given), functional(func)
    target = targets[0]
    if len(targets) == 1 and returning is not None:
        names = {argument.name for argument in returning._schema.arguments}
        options = {name: x for name, x in given.items() if name in names}
        value = returning(*tree_map(widened, args), **tree_map(widened, options))
        target.copy_(value)
        if torch.equal(widened(target).nan_to_num(), value.nan_to_num()):
            return target
    raise UserError(
        f"the reference keeps a tensor of {target.dtype}, shape {tuple(target.shape)}, that "
        f"{func._schema.name} writes to, so what it computes in float64 would be rounded there: "
        "let it write to a new tensor"
    )


def written(func: Any, args: tuple, given: dict[str, Any]) -> list["Tensor"]:
    """Returns the tensors that an operation writes to. They are no constants any more."""
    from torch.utils._pytree import tree_leaves

    found = []
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else given.get(argument.name)
        if value is not None and argument.alias_info is not None and argument.alias_info.is_write:
            found += tree_leaves(value)
    return found


def release(targets: list["Tensor"]) -> None:
    """Unmarks tensors that are written to, and those of which they are views."""
    for target in targets:
        unmarked(target)
        if target._base is not None:
            unmarked(target._base)


def _widen(target: "Tensor", widened: Callable[[Any], Any]) -> None:
    """Makes a tensor float64 where it is, and the one of which it is a view."""
    base = target if target._base is None else target._base
    wide = widened(base)
    if wide is not base:
        size, stride, start = target.size(), target.stride(), target.storage_offset()
        base.data = wide
        if target is not base:
            target.data = wide.as_strided(size, stride, start)
    release([target])


@lru_cache(maxsize=256)
def functional(func: Any) -> Any:
    """Returns the operation that returns what `func` writes; None if there is none."""
    import torch

    space, _, name = func._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    wanted = [
        (argument.name, str(argument.type))
        for argument in func._schema.arguments
        if not (argument.kwarg_only and argument.alias_info is not None)
    ]
    for overload in () if packet is None else packet.overloads():
        found = getattr(packet, overload)
        own = [(argument.name, str(argument.type)) for argument in found._schema.arguments]
        if own == wanted and not found._schema.is_mutable:
            return found
    return None


def with_rounding(
    run: Callable[[Any, tuple, dict[str, Any]], Any],
    func: Any,
    args: tuple,
    given: dict[str, Any],
) -> Any:
    """Runs an operation that writes to a tensor as one that returns it, which may be rounded.

    Parameters are updated as they are: the comparison of updates grants that rounding.

    Args:
        run: runs an operation with its arguments and keyword arguments, and rounds.
        func: the operation.
        args: its arguments.
        given: its keyword arguments.
    """
    import torch

    if is_constant(func, args, given):
        return func(*args, **given)
    targets = written(func, args, given)
    release(targets)
    returning = functional(func)
    if len(targets) != 1 or returning is None or _is_parameter(targets[0]):
        return func(*args, **given)
    target = targets[0]
    if func is torch.ops.aten.copy_.default:
        casts = args[1].dtype != target.dtype
        dtype = {"dtype": target.dtype}
        value = run(torch.ops.aten._to_copy.default, args[1:2], dtype) if casts else args[1]
    else:
        names = {argument.name for argument in returning._schema.arguments}
        value = run(returning, args, {name: x for name, x in given.items() if name in names})
    return target.copy_(value)


def _is_parameter(tensor: "Tensor") -> bool:
    return tensor.requires_grad and tensor.is_leaf
