"""The short convolution equals PyTorch's, within each text of a row."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny import TINY, relative_l2

from jaxllm.layers.delta.convolution import Convolution


@pytest.mark.parametrize("size", [1, 2, 4])
def test_it_equals_that_of_pytorch(size):
    rng = np.random.default_rng(0)
    conv = Convolution("KH", (3, 5), size, TINY, rngs=nnx.Rngs(0))
    kernel = rng.standard_normal((3, 5, size)).astype(np.float32)
    conv.kernel = conv.kernel.replace(jnp.asarray(kernel))
    x_BTKH = rng.standard_normal((2, 11, 3, 5)).astype(np.float32)
    before_BCKH = rng.standard_normal((2, size - 1, 3, 5)).astype(np.float32)
    runs_BT = np.repeat([[0, 1, 2]], [4, 1, 6], axis=1).repeat(2, axis=0)
    found = conv(jnp.asarray(x_BTKH), jnp.asarray(runs_BT), jnp.asarray(before_BCKH))

    def theirs(x_BSKH):
        channels = torch.tensor(x_BSKH.reshape(*x_BSKH.shape[:2], -1)).mT
        weight = torch.tensor(kernel).reshape(15, 1, size)
        out = torch.nn.functional.conv1d(channels, weight, groups=15)
        return torch.nn.functional.silu(out).mT.reshape(2, -1, 3, 5).numpy()

    nothing = np.zeros_like(before_BCKH)
    parts = [(before_BCKH, x_BTKH[:, :4]), (nothing, x_BTKH[:, 4:5]), (nothing, x_BTKH[:, 5:])]
    expected = np.concatenate([theirs(np.concatenate(part, axis=1)) for part in parts], axis=1)
    assert relative_l2(found, expected) <= 1e-6
