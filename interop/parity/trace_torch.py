"""What the reference computes on the way from tokens to logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from .taps import LOGITS

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
        stack.enter_context(_inference(reference, attention))
        stack.enter_context(_watched_attention(reference, keep))
        for name in modules:
            hook = reference.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: keep(name, output)
            )
            stack.callback(hook.remove)
        tokens = torch.as_tensor(tokens_BT, dtype=torch.int64, device=reference.device)
        keep(LOGITS, reference(tokens, use_cache=False).logits)
    return outputs


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
def _inference(reference: "PreTrainedModel", attention: str) -> Iterator[None]:
    """No dropout, no gradients, exact float32 products; all is as it was afterwards."""
    import torch

    training = [module for module in reference.modules() if module.training]
    implementation = reference.config._attn_implementation
    precision = torch.get_float32_matmul_precision()
    reference.eval()
    reference.set_attn_implementation(attention)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        reference.set_attn_implementation(implementation)
        for module in training:
            module.training = True
