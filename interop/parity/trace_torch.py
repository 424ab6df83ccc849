"""What the reference computes on the way from tokens to logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from .rows import LOGITS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def trace_reference(
    reference: "PreTrainedModel", tokens_BT: np.ndarray, modules: Sequence[str], attention: str
) -> dict[str, np.ndarray]:
    """The outputs of `modules`, what attention was given and returned, and the logits, in float32.

    In the order of execution. Of the module `x` of an attention, its queries, keys, values and
    heads go by `x@query`, `x@key`, `x@value` and `x@mixed`.

    Args:
        reference: a causal language model of transformers.
        tokens_BT: token ids.
        modules: names as in `named_modules()`.
        attention: the implementation, by its name in transformers.
    """
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        # A copy: what follows may write to the same memory.
        outputs[name] = first.detach().to("cpu", torch.float32, copy=True).numpy()

    with ExitStack() as stack:
        stack.enter_context(prepared(reference, attention))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_watched_attention(reference, keep))
        routers = _routers(reference, modules)
        for name in [name for name in modules if name not in routers.values()]:
            hook = reference.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: keep(name, output)
            )
            stack.callback(hook.remove)
        stack.enter_context(_watched_products(routers, keep))
        tokens = torch.as_tensor(tokens_BT, dtype=torch.int64, device=reference.device)
        keep(LOGITS, reference(tokens, use_cache=False).logits)
    return outputs


def _routers(reference: "PreTrainedModel", modules: Sequence[str]) -> dict[int, str]:
    """By the identity of their weights, modules that return more than their product.

    What else they return, and in what order, is their own choice.
    """
    found = {}
    for name in modules:
        module = reference.get_submodule(name)
        if "router" in type(module).__name__.lower() and hasattr(module, "weight"):
            found[id(module.weight)] = name
    return found


def _watched_products(
    weights: Mapping[int, str], keep: Callable[[str, Any], None]
) -> AbstractContextManager[Any]:
    """Keeps what `linear` makes of these weights, whatever other mode computes it."""
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class WatchedProducts(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            returned = func(*args, **(kwargs or {}))
            if func is functional.linear and len(args) > 1 and id(args[1]) in weights:
                keep(weights[id(args[1])], returned)
            return returned

    return WatchedProducts()


@contextmanager
def _watched_attention(
    reference: "PreTrainedModel", keep: Callable[[str, Any], None]
) -> Iterator[None]:
    """Keeps what every function of attention is given and returns."""
    from transformers.modeling_utils import AttentionInterface

    names = {id(module): name for name, module in reference.named_modules()}
    chosen = AttentionInterface.get_interface

    def get_interface(self: Any, implementation: str, default: Callable) -> Callable:
        attend = chosen(self, implementation, default)

        def watched(
            module: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any
        ) -> Any:
            name = names[id(module)]
            for what, tensor in (("query", query), ("key", key), ("value", value)):
                keep(f"{name}@{what}", tensor)
            returned = attend(module, query, key, value, *args, **options)
            keep(f"{name}@mixed", returned)
            return returned

        return watched

    with mock.patch.object(AttentionInterface, "get_interface", get_interface):
        yield


@contextmanager
def prepared(reference: "PreTrainedModel", attention: str) -> Iterator[None]:
    """No dropout, exact float32 products, attention so implemented; all as it was afterwards."""
    import torch

    training = [module for module in reference.modules() if module.training]
    implementation = reference.config._attn_implementation
    precision = torch.get_float32_matmul_precision()
    reference.eval()
    # Models that cap their scores have no fused attention.
    can = attention != "sdpa" or reference._supports_sdpa
    reference.set_attn_implementation(attention if can else "eager")
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        reference.set_attn_implementation(implementation)
        for module in training:
            module.training = True
