"""Other ways to compute the reference that are just as right: how far they land is its noise.

A kernel that merely sums in another order is not enough. On models whose attention is saturated,
the fused attention of PyTorch differs from its plain one by a thirtieth of what the roundings
elsewhere amount to. So one way has sums without rounding, and the other has more rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ULP = 2.0**-23


def exact_sums(reference: "PreTrainedModel") -> AbstractContextManager[Any]:
    """Matrix products, softmax and layer norms in float64, rounded to float32 when done."""
    import torch

    def widen(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if is_float else value

    def exact(func: Callable, args: tuple, kwargs: dict) -> Any:
        wide = {n: widen(value) for n, value in kwargs.items() if n != "dtype"}  # of the result
        return func(*map(widen, args), **wide).float()

    return _instead_of(_inner_sums() | _sums_of_modules(), exact)


@contextmanager
def other_roundings(reference: "PreTrainedModel") -> Iterator[None]:
    """Numbers are off by up to their last bit, and so are their gradients.

    Those that a module without submodules returns, and what attention sums on the way.
    """
    import torch

    generator = torch.Generator().manual_seed(0)

    def nudge(output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(nudge(part) for part in output)
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output  # the experts that a router chose
        draw = 2 * torch.rand(output.shape, generator=generator) - 1
        return output * (1 + ULP * draw.to(output.device))

    leaves = [module for module in reference.modules() if not any(module.children())]
    with ExitStack() as stack:
        for leaf in leaves:
            hook = leaf.register_forward_hook(lambda module, args, output: nudge(output))
            stack.callback(hook.remove)
        rounded = _instead_of(_inner_sums(), lambda func, args, kw: nudge(func(*args, **kw)))
        stack.enter_context(rounded)
        yield


@contextmanager
def moved_weights(reference: Any, seed: int) -> Iterator[None]:
    """Weights are off by up to their last five bits, as those of two trainings soon are.

    Where an activation has a kink, such bits decide on which side of it a token is, and so how
    training goes on from there. That is rare, and sums that are computed otherwise may not show it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    before = [parameter.detach().clone() for parameter in reference.parameters()]
    with torch.no_grad():
        for parameter in reference.parameters():
            draw = 2 * torch.rand(parameter.shape, generator=generator) - 1
            parameter.mul_(1 + 16 * ULP * draw.to(parameter.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(reference.parameters(), before, strict=True):
                parameter.copy_(value)


def _inner_sums() -> set[Callable]:
    """Functions that sum and are seldom a module of their own."""
    import torch
    from torch.nn import functional

    return {
        *(functional.softmax, torch.softmax, torch.Tensor.softmax),
        *(torch.addmm, torch.baddbmm, torch.bmm, torch.einsum, torch.matmul),
        *(torch.Tensor.baddbmm, torch.Tensor.matmul, torch.Tensor.__matmul__),
    }


def _sums_of_modules() -> set[Callable]:
    """Functions that sum, which most modules without submodules consist of."""
    from torch.nn import functional

    # The gradient of an embedding is a sum.
    return {functional.linear, functional.layer_norm, functional.embedding}


def _instead_of(
    functions: set[Callable], call: Callable[[Callable, tuple, dict], Any]
) -> AbstractContextManager[Any]:
    """Has these functions of PyTorch called by another."""
    from torch.overrides import TorchFunctionMode

    class Instead(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            if func in functions:
                return call(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    return Instead()


WAYS: tuple[Callable[["PreTrainedModel"], AbstractContextManager[Any]], ...] = (
    exact_sums,
    other_roundings,
)
