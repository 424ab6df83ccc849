"""Other ways to compute the reference that are just as right: how far they land is its noise.

A kernel that merely sums in another order is not enough. On models whose attention is saturated,
the fused attention of PyTorch differs from its plain one by a thirtieth of what the roundings
elsewhere amount to. So one way has products without rounding, and the other has more rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ULP = 2.0**-23


def exact_products(reference: "PreTrainedModel") -> AbstractContextManager[Any]:
    """Matrix products and attention in float64, rounded to float32 when they are done."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    products = {
        functional.linear,
        functional.scaled_dot_product_attention,
        torch.bmm,
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
    }

    def widen(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if is_float else value

    class ExactProducts(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func not in products:
                return func(*args, **kwargs)
            wide = {name: widen(value) for name, value in kwargs.items()}
            return func(*map(widen, args), **wide).float()

    return ExactProducts()


@contextmanager
def other_roundings(reference: "PreTrainedModel") -> Iterator[None]:
    """Every number that a module without submodules returns is off by up to its last bit."""
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
    hooks = [
        leaf.register_forward_hook(lambda module, args, output: nudge(output)) for leaf in leaves
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# How attention is implemented, and what else is done in another way.
Way = tuple[str, Callable[["PreTrainedModel"], AbstractContextManager[Any]]]
WAYS: tuple[Way, ...] = (("sdpa", exact_products), ("eager", other_roundings))
