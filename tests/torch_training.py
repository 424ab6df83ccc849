"""PyTorch training for handover tests: AdamW with parameter groups, and training steps."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

RECIPE = {"learning_rate": 3e-3, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
CLIP = 0.7  # maximum global gradient norm; low enough that clipping happens


def adamw(model: torch.nn.Module, *, named: bool = True, one_group: bool = False) -> Any:
    """Creates AdamW with `RECIPE`; only matrices decay, or everything with `one_group`."""
    groups: dict[bool, list] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        is_matrix = one_group or parameter.ndim >= 2
        groups[is_matrix].append((name, parameter) if named else parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": RECIPE["weight_decay"] if decays else 0.0}
            for decays, params in groups.items()
            if params
        ],
        lr=RECIPE["learning_rate"],
        betas=(RECIPE["b1"], RECIPE["b2"]),
        eps=RECIPE["eps"],
    )


def steps(
    model: torch.nn.Module, optimizer: Any, batches: Iterable[dict], rates: Sequence[float]
) -> Iterator[float]:
    """Takes a training step on each batch with its learning rate, and yields its loss."""
    for batch, rate in zip(batches, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens = torch.as_tensor(batch["tokens"], dtype=torch.int64)
        optimizer.zero_grad()
        out = model(tokens[:, :-1])
        logits = out[0] if isinstance(out, tuple) else out.logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        mask = torch.as_tensor(batch["mask"]).flatten()
        loss = (losses * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        yield loss.item()
