"""Distributed checkpoints: the weights are read, and the state of the training is left out."""

import numpy as np
import pytest
import torch
from torch.distributed import checkpoint as distributed

from jaxllm.interop.formats.pytorch.saved import dcp_folder

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_only_the_model_is_read(tmp_path):
    model = {"layers.0.w": torch.randn(4, 3)}
    others = {
        "optimizer": {"state": {"layers.0.w": {"exp_avg": torch.ones(4, 3)}}},
        "train_state": {"step": torch.tensor(3)},
        "epoch": 2,
    }
    distributed.save({"model": model, **others}, checkpoint_id=tmp_path)
    found = dcp_folder.read_weights(tmp_path)
    assert list(found) == ["model.layers.0.w"]
    whole = found["model.layers.0.w"].read([(0, 4), (0, 3)])
    np.testing.assert_array_equal(whole, model["layers.0.w"])
