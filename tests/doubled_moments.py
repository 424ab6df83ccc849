"""A state of AdamW whose moments are twice and four times the weights, in PyTorch and here."""

from typing import Any

import numpy as np
import torch

from jaxllm.models import Model
from jaxllm.optimizer_state import AdamWState
from jaxllm.params import named_parameters

OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "amsgrad": False, "maximize": False}


def state_like(weights: dict[str, torch.Tensor], decay: float = 0.1) -> dict[str, Any]:
    """A state dict by names whose moments are twice and four times the weights, in one group."""
    state = {
        name: {"step": torch.tensor(3.0), "exp_avg": 2 * x, "exp_avg_sq": 4 * x}
        for name, x in weights.items()
    }
    group = {"params": list(weights), "lr": 1e-3, "weight_decay": decay, **OPTIONS}
    return {"state": state, "param_groups": [group]}


def assert_doubled(model: Model, state: AdamWState) -> None:
    weights = {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}
    assert weights.keys() == state.mu.keys() == state.nu.keys() == state.weight_decay.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(state.mu[name], 2 * array)
        np.testing.assert_array_equal(state.nu[name], 4 * array)
