"""Training in PyTorch: the reference's losses, gradients and AdamW steps."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from jaxllm.interop.parity.alignment.adapters import outputs_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.references.peft_models import base_name, is_trained

from .float64 import in_float64
from .recipe import Recipe, TrainingRecord
from .simulated_rounding import simulated_rounding
from .torch_trace import prepared

IGNORED = -100  # label of targets that do not count
ULP = 2.0**-23


class Rounding(NamedTuple):
    """How a training run rounds: as float32 does, more than that, or hardly at all."""

    seed: int | None = None  # of simulated rounding in the first step
    is_wide: bool = False  # whether the run is in float64


FLOAT32, FLOAT64 = Rounding(), Rounding(is_wide=True)


def train_reference(
    reference: Any,
    batches: Sequence[Inputs],
    recipe: Recipe,
    decays: Collection[str],
    rounding: Rounding = FLOAT32,
) -> TrainingRecord:
    """Trains a copy of the reference's parameters, one step on each batch.

    Args:
        reference: a model of transformers or a plain PyTorch module. Not changed.
        batches: the batches, of one shape or several.
        recipe: the training recipe.
        decays: names of the parameters that weight decay applies to.
        rounding: how the run rounds. Rounding in one step is carried to all later ones.
    """
    import torch

    seed, dtype = rounding.seed, torch.float64 if rounding.is_wide else torch.float32
    before = {n: p for n, p in reference.named_parameters() if is_trained(reference, n)}
    params = {n: p.detach().to(dtype, copy=True).requires_grad_() for n, p in before.items()}
    optimizer = _optimizer(params, recipe, decays)
    losses, norm = [], 0.0
    first: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(prepared(reference))
        stack.enter_context(in_float64() if rounding.is_wide else nullcontext())
        for step, inputs in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            optimizer.zero_grad()
            with simulated_rounding(seed) if seed is not None and not step else nullcontext():
                loss = mean_loss(reference, params, inputs)
                loss.backward()
                losses.append(loss.item())
                if step == 0:
                    first["gradient"] = {n: _array(_gradient(p)) for n, p in params.items()}
                if step == 0 and rounding == FLOAT32:
                    first["parameter"] = {n: _array(p) for n, p in params.items()}
                total = torch.nn.utils.clip_grad_norm_(params.values(), recipe.clip_norm)
                optimizer.step()
            if step == 0:
                norm = total.item()
                first |= _moments(params, optimizer) if not rounding.is_wide else {}
                first["update"] = _updates(params, before)
    copies = {  # every name of a tied parameter, mapped to its first name
        copy: name
        for copy, p in reference.named_parameters(remove_duplicate=False)
        for name in [name for name, original in before.items() if original is p][:1]
    }
    named = {
        what: {copy: arrays[name] for copy, name in copies.items()}
        for what, arrays in first.items()
    }
    return TrainingRecord(tuple(losses), norm, named)


def mean_loss(reference: Any, params: dict[str, Any], inputs: Inputs) -> Any:
    """Returns the same loss as `jax_train.mean_loss`, with these parameters."""
    import torch
    from torch.nn import functional

    out = outputs_of(reference, inputs, params).float()
    if inputs.labels is not None:
        return functional.mse_loss(out, torch.as_tensor(inputs.labels, device=out.device))
    tokens = torch.as_tensor(inputs.target, dtype=torch.int64, device=out.device)[:, 1:]
    if inputs.target_mask is not None:
        is_token = torch.as_tensor(inputs.target_mask != 0, device=out.device)
        tokens = tokens.masked_fill(~(is_token[:, 1:] & is_token[:, :-1]), IGNORED)
    logits = out[:, :-1].flatten(0, 1)
    return functional.cross_entropy(logits, tokens.flatten(), ignore_index=IGNORED)


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


def _optimizer(params: dict[str, Any], recipe: Recipe, decays: Collection[str]) -> Any:
    import torch

    groups = [
        {
            "params": [p for n, p in params.items() if (base_name(n) in decays) == decay],
            "weight_decay": recipe.weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    betas = recipe.b1, recipe.b2
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], recipe.rate(0), betas, recipe.eps
    )


def _moments(params: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Returns both moments of every parameter."""
    import torch

    found: dict[str, Any] = {"m": {}, "v": {}}
    for name, parameter in params.items():
        state = optimizer.state.get(parameter, {})  # empty if the loss does not depend on it
        for what, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            found[what][name] = _array(state.get(key, torch.zeros_like(parameter)))
    return found


def _updates(params: dict[str, Any], before: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the change of every parameter.

    Parameters are rounded to float32 also by a run in float64, as those of any other run are.
    """
    return {n: _array(p).astype(np.float32) - _array(before[n]) for n, p in params.items()}


def _gradient(parameter: Any) -> Any:
    import torch

    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _array(tensor: Any) -> np.ndarray:
    # A copy: later steps write to the same memory.
    return tensor.detach().cpu().numpy().copy()
