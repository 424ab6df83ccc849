"""Traces the reference: records the intermediate activations of a forward pass in PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np

from jaxllm.interop.parity.alignment.adapters import Recorder, adapter_of, outputs_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.numerics.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.numerics.attention_scores import PROBS, SCORES
from jaxllm.interop.parity.report.rows import LOGITS

# Recorded activations by name, in execution order; one for each call of the module.
Outputs = dict[str, list[np.ndarray]]


def trace_reference(
    reference: Any,
    inputs: Inputs,
    names: Sequence[str],
    given: Mapping[str, Sequence[np.ndarray]] | None = None,
    store: ArrayStore = in_memory,
) -> Outputs:
    """Runs the reference and returns activations and logits in float32.

    Inside the attention module `x`, queries, keys, values, scores, probabilities and mixed values
    are named `x@query`, `x@key`, `x@value`, `x@scores`, `x@probs` and `x@mixed`.

    Args:
        reference: a model of transformers or a plain PyTorch module.
        inputs: its inputs.
        names: names of modules as in `named_modules()`, and names inside attention as above.
        given: activations of an earlier run. Each activation is recorded and then replaced by
            these, so that its error is its own.
        store: the store for the activations.
    """
    import torch

    outputs: Outputs = {}

    def keep(name: str, output: Any) -> Any:
        first, *others = output if isinstance(output, tuple) else (output,)
        calls = outputs.setdefault(name, [])
        # A copy: later operations may write to the same memory.
        calls.append(store(first.detach().to("cpu", torch.float32, copy=True).numpy()))
        if given is None or name not in given:
            return output
        first = torch.tensor(given[name][len(calls) - 1]).to(first)
        return (first, *others) if isinstance(output, tuple) else first

    modules = [name for name in names if "@" not in name]
    attentions = dict.fromkeys(name.partition("@")[0] for name in names if "@" in name)
    with ExitStack() as stack:
        stack.enter_context(prepared(reference))
        stack.enter_context(torch.no_grad())
        stack.enter_context(adapter_of(reference).record_attention(reference, keep))
        routers = _routers(reference, modules)
        for name in [name for name in modules if name not in routers.values()]:
            hook = reference.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: keep(name, output)
            )
            stack.callback(hook.remove)
        stack.enter_context(_watched_products(routers, keep))
        stack.enter_context(_watched_softmax(reference, attentions, keep))
        keep(LOGITS, outputs_of(reference, inputs))
    return outputs


def _routers(reference: Any, modules: Sequence[str]) -> dict[int, str]:
    """Returns the names of routers by the identity of their weights.

    A router may return more than its logits, in any order, so the product with its weight is
    recorded instead of its output.
    """
    found = {}
    for name in modules:
        module = reference.get_submodule(name)
        if "router" in type(module).__name__.lower() and hasattr(module, "weight"):
            found[id(module.weight)] = name
    return found


def _watched_products(weights: Mapping[int, str], keep: Recorder) -> AbstractContextManager[Any]:
    """Records the output of `linear` for these weights, even under another function mode."""
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class WatchedProducts(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            returned = func(*args, **(kwargs or {}))
            if func is functional.linear and len(args) > 1 and id(args[1]) in weights:
                return keep(weights[id(args[1])], returned)
            return returned

    return WatchedProducts()


@contextmanager
def _watched_softmax(reference: Any, attentions: Iterable[str], keep: Recorder) -> Iterator[None]:
    """Records the input and output of softmax inside these modules."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    entered: list[str] = []

    class WatchedSoftmax(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if not (entered and args) or func not in (
                functional.softmax,
                torch.softmax,
                torch.Tensor.softmax,
            ):
                return func(*args, **kwargs)
            scores = keep(f"{entered[-1]}@{SCORES}", args[0])
            return keep(f"{entered[-1]}@{PROBS}", func(scores, *args[1:], **kwargs))

    with ExitStack() as stack:
        for name in attentions:
            module = reference.get_submodule(name)
            enter = module.register_forward_pre_hook(
                lambda module, args, name=name: entered.append(name)
            )
            leave = module.register_forward_hook(
                lambda module, args, output: entered.pop() and None
            )
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.enter_context(WatchedSoftmax())
        yield


@contextmanager
def prepared(reference: Any) -> Iterator[None]:
    """Disables dropout, uses full float32 products and plain attention; restores all on exit."""
    import torch

    training = [module for module in reference.modules() if module.training]
    precision = torch.get_float32_matmul_precision()
    reference.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        with adapter_of(reference).plain_attention(reference):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for module in training:
            module.training = True
