"""Fills reference models with distinct random numbers; no norm scale is one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def draw() -> Callable[..., nn.Module]:
    """Fills a model, and returns it in evaluation mode and in float64."""

    def fill(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                is_scale = parameter.dim() == 1 and bool((parameter == 1).all())
                parameter.copy_(1 + 0.3 * drawn if is_scale else 0.2 * drawn)
        return model.eval().double()

    return fill
