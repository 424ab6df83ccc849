"""The reference's side of training, in PyTorch."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .recipe import Recipe, Training
from .trace_torch import prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_reference(
    reference: "PreTrainedModel",
    batches: Sequence[np.ndarray],
    recipe: Recipe,
    decays: Collection[str],
    attention: str,
) -> Training:
    """A step of the recipe on each batch of tokens, BT; the reference stays as it is.

    Args:
        reference: of transformers.
        batches: of one shape or several.
        recipe: what to do with the gradients.
        decays: the parameters that decay.
        attention: the implementation, by its name in transformers.
    """
    import torch

    before = dict(reference.named_parameters())
    params = {name: p.detach().clone().requires_grad_() for name, p in before.items()}
    optimizer = _optimizer(params, recipe, decays)
    losses, norm = [], 0.0
    first: dict[str, Any] = {}
    with prepared(reference, attention):
        for step, tokens_BT in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            optimizer.zero_grad()
            loss = mean_loss(reference, params, tokens_BT)
            loss.backward()
            losses.append(loss.item())
            if step == 0:
                first["parameter"] = {n: _array(p) for n, p in params.items()}
                first["gradient"] = {n: _array(_gradient(p)) for n, p in params.items()}
            total = torch.nn.utils.clip_grad_norm_(params.values(), recipe.clip_norm)
            optimizer.step()
            if step == 0:
                norm = total.item()
                first |= _after(params, before, optimizer)
    return Training(tuple(losses), norm, first)


def mean_loss(reference: "PreTrainedModel", params: dict[str, Any], tokens_BT: np.ndarray) -> Any:
    """The mean negative log-likelihood of each token but the first, with these parameters."""
    import torch

    tokens = torch.as_tensor(tokens_BT, dtype=torch.int64, device=reference.device)
    inputs = {"input_ids": tokens, "use_cache": False}
    logits = torch.func.functional_call(reference, params, (), inputs).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _optimizer(params: dict[str, Any], recipe: Recipe, decays: Collection[str]) -> Any:
    import torch

    groups = [
        {
            "params": [p for name, p in params.items() if (name in decays) == decay],
            "weight_decay": recipe.weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    betas = recipe.b1, recipe.b2
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], recipe.rate(0), betas, recipe.eps
    )


def _after(params: dict[str, Any], before: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """The moments and the update of every parameter after a step."""
    import torch

    found: dict[str, Any] = {"m": {}, "v": {}, "update": {}}
    for name, parameter in params.items():
        state = optimizer.state.get(parameter, {})  # none, if it took no part in the loss
        for what, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            found[what][name] = _array(state.get(key, torch.zeros_like(parameter)))
        found["update"][name] = _array(parameter) - _array(before[name])
    return found


def _gradient(parameter: Any) -> Any:
    import torch

    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _array(tensor: Any) -> np.ndarray:
    # A copy: what follows writes to the same memory.
    return tensor.detach().cpu().numpy().copy()
