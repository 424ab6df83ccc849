"""Muon: PyTorch's trajectory, one layer at a time, and orthogonal matrices."""

import numpy as np
import pytest
import torch
from trajectories import compare, decayed

from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.muon import newton_schulz


def test_singular_values_become_nearly_one():
    x = np.random.default_rng(0).standard_normal((3, 20, 7)).astype(np.float32)
    values = np.linalg.svd(np.asarray(newton_schulz(x)), compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.3
    left, _, right = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(newton_schulz(left @ right), left @ right, atol=0.35)


@pytest.mark.parametrize("nesterov", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_hundred_steps_match_torch(nesterov, monkeypatch):
    """PyTorch iterates in bfloat16, which here is float32; AdamW has what is no layer's matrix."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    config = OptimizerConfig(
        **{"name": "muon", "learning_rate": 0.01, "decay": "constant", "nesterov": nesterov},
        **{"weight_decay": 0.1, "momentum": 0.9, "clip_norm": None},
    )

    def make(theirs):
        mine = [x for name, x in theirs.items() if "layers." in name and name.endswith(".kernel")]
        others = {name: x for name, x in theirs.items() if not any(x is one for one in mine)}
        options = {"momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
        return [
            torch.optim.Muon(mine, lr=0.01, weight_decay=0.1, **options),
            torch.optim.AdamW(decayed(others, 0.1), lr=0.01, betas=(0.9, 0.95), eps=1e-8),
        ]

    compare(config, make, limit=2e-4)  # five quintic iterations magnify rounding
