"""Equivalent evaluations of the reference; their spread is its rounding-noise floor.

Summing in another order is not enough: on models with saturated attention, PyTorch's fused
attention differs from its plain one by only a thirtieth of the rounding noise from elsewhere. So
one evaluation has sums without rounding, and the other has additional rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

ULP = 2.0**-23


def exact_sums(reference: "Module") -> AbstractContextManager[Any]:
    """Computes matrix products, softmax and layer norms in float64, then rounds to float32."""
    import torch

    def widen(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if is_float else value

    def exact(func: Callable, args: tuple, kwargs: dict) -> Any:
        # Without the dtype of the result, which would be float32.
        wide = {n: widen(value) for n, value in kwargs.items() if n != "dtype"}
        return func(*map(widen, args), **wide).float()

    return _instead_of(_inner_sums() | _sums_of_modules(), exact)


@contextmanager
def other_roundings(reference: "Module") -> Iterator[None]:
    """Perturbs activations by up to one ULP, and with them their gradients.

    The activations are the outputs of modules without submodules and the sums inside attention.
    """
    import torch

    generator = torch.Generator().manual_seed(0)

    def nudge(output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(nudge(part) for part in output)
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output  # such as the indices of selected experts
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
def perturbed_weights(reference: Any, seed: int) -> Iterator[None]:
    """Perturbs weights by up to their last five bits, as much as two training runs soon differ by.

    Where an activation function has a kink, such bits decide on which side of it a token falls,
    and so how training continues. That is rare, and the other evaluations may not reveal it.
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
    """Returns summing functions that are usually called outside of modules of their own."""
    import torch
    from torch.nn import functional

    return {
        *(functional.softmax, torch.softmax, torch.Tensor.softmax),
        *(torch.addmm, torch.baddbmm, torch.bmm, torch.einsum, torch.matmul),
        *(torch.Tensor.baddbmm, torch.Tensor.matmul, torch.Tensor.__matmul__),
    }


def _sums_of_modules() -> set[Callable]:
    """Returns the summing functions that most modules without submodules consist of."""
    from torch.nn import functional

    # The gradient of an embedding is a sum.
    return {functional.linear, functional.layer_norm, functional.embedding}


def _instead_of(
    functions: set[Callable], call: Callable[[Callable, tuple, dict], Any]
) -> AbstractContextManager[Any]:
    """Within this context, PyTorch functions in `functions` are called through `call`."""
    from torch.overrides import TorchFunctionMode

    class Instead(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            if func in functions:
                return call(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    return Instead()


EQUIVALENT_EVALUATIONS: tuple[Callable[["Module"], AbstractContextManager[Any]], ...] = (
    exact_sums,
    other_roundings,
)
