"""Traces the reference: records the intermediate activations of a forward pass in PyTorch."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np

from jaxllm.interop.parity.alignment.adapters import Recorder, adapter_of, outputs_of
from jaxllm.interop.parity.alignment.calls import of_call
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.memory.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.numerics.attention_scores import PROBS, SCORES
from jaxllm.interop.parity.report.activation_rows import LOGITS

# Recorded activations by name, in execution order; those of later calls by the names of `calls`.
Outputs = dict[str, np.ndarray]
# Calls a function of PyTorch with its arguments; returns what it returned, or something else.
Call = Callable[[Callable, tuple, dict], Any]


def trace_reference(
    reference: Any,
    inputs: Inputs,
    names: Sequence[str],
    given: Mapping[str, np.ndarray] | None = None,
    minus: Mapping[str, np.ndarray] | None = None,
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
            these, so that its error is its own. Others than those of `names` are not used.
        minus: activations of an earlier run, which are subtracted from what is recorded.
        store: the store for the activations.
    """
    import torch

    outputs: Outputs = {}
    kept, numbers = {*names, LOGITS}, Counter[str]()

    def keep(name: str, output: Any) -> Any:
        if name not in kept:
            return output
        numbers[name] += 1
        first, *others = output if isinstance(output, tuple) else (output,)
        name = of_call(name, numbers[name] - 1)
        # A copy: later operations may write to the same memory. In float64 it stays in float64.
        found = first.detach().to("cpu", torch.float32, copy=minus is None).numpy()
        if minus is not None:
            found = float32_difference(found, minus[name])
        outputs[name] = store(found)
        if given is None or name not in given:
            return output
        # Not a new tensor, which simulated rounding would take for a constant.
        first = torch.empty_like(first).copy_(torch.tensor(given[name]))
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


def float32_difference(found: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns the difference in float32, zero for equal infinities.

    That of nearby float32 numbers is exact.

    Raises:
        ValueError: the shapes differ.
    """
    if np.shape(found) != np.shape(base):
        raise ValueError(f"an array of {np.shape(found)} is compared with one of {np.shape(base)}")
    with np.errstate(invalid="ignore", over="ignore"):  # scores of masked keys
        apart = np.subtract(found, base).astype(np.float32, copy=False)
        if np.isnan(apart.sum()):
            apart[np.isnan(apart) & (found == base)] = 0.0
    return apart


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

    def call(func: Callable, args: tuple, kwargs: dict) -> Any:
        returned = func(*args, **kwargs)
        if func is functional.linear and len(args) > 1 and id(args[1]) in weights:
            return keep(weights[id(args[1])], returned)
        return returned

    return _calling_through()(call)


@contextmanager
def _watched_softmax(reference: Any, attentions: Iterable[str], keep: Recorder) -> Iterator[None]:
    """Records the input and output of softmax inside these modules."""
    import torch
    from torch.nn import functional

    entered: list[str] = []
    softmax = functional.softmax, torch.softmax, torch.Tensor.softmax

    def call(func: Callable, args: tuple, kwargs: dict) -> Any:
        if not (entered and args) or func not in softmax:
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
        stack.enter_context(_calling_through()(call))
        yield


@cache
def _calling_through() -> Callable[[Call], AbstractContextManager[Any]]:
    """Returns the class of contexts in which PyTorch functions are called through a function.

    Only one class: a class refers to itself, so that it and what it holds live for some time.
    """
    from torch.overrides import TorchFunctionMode

    class CallingThrough(TorchFunctionMode):
        def __init__(self, call: Call):
            super().__init__()
            self.call = call

        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            return self.call(func, args, kwargs or {})

    return CallingThrough


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
