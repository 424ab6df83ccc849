"""The SwiGLU MLP equals PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny import TINY, random_model, relative_l2
from torch.nn.functional import silu

from jaxllm.config import ClampConfig, MlpConfig, NumericsConfig
from jaxllm.layers.mlp import gated

TOLERANCE = 2e-6  # relative L2, float32


def mlp_of(**changes):
    return random_model(scan_layers=False, num_layers=1, **changes).layers["0"].mlp


def torch_mlp(x_BTD: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.kernel"] + weights.get(f"{name}.bias", 0)

    return project("down_proj", silu(project("gate_proj", x_BTD)) * project("up_proj", x_BTD))


def tensors(state: nnx.State) -> dict[str, torch.Tensor]:
    flat = nnx.to_flat_state(state)
    return {".".join(path): torch.tensor(np.asarray(v.get_value())) for path, v in flat}


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_match_torch(bias):
    graphdef, state = nnx.split(mlp_of(mlp=MlpConfig(bias=bias)))
    x = np.random.default_rng(1).standard_normal((2, 7, TINY.embed_dim)).astype(np.float32)
    weight = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)

    def loss(state, x):
        out = nnx.merge(graphdef, state)(x)
        return jnp.vdot(out, weight), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (by_state, by_x), out = gradient(state, jnp.asarray(x))
    weights = {name: t.requires_grad_() for name, t in tensors(state).items()}
    x_BTD = torch.tensor(x, requires_grad=True)
    expected = torch_mlp(x_BTD, weights)
    (expected * torch.tensor(weight)).sum().backward()
    assert relative_l2(out, expected.detach()) < TOLERANCE
    assert relative_l2(by_x, x_BTD.grad) < TOLERANCE
    gradients = tensors(by_state)
    assert gradients.keys() == weights.keys()
    assert len(gradients) == (6 if bias else 3)
    for name, found in gradients.items():
        assert relative_l2(found, weights[name].grad) < TOLERANCE, name


def test_positions_are_independent():
    mlp = mlp_of()
    x_BTD = jnp.asarray(np.random.default_rng(1).standard_normal((1, 6, TINY.embed_dim)))
    changed = mlp(x_BTD.at[:, 3].set(1)) != mlp(x_BTD)
    np.testing.assert_array_equal(changed.any(-1), [[False] * 3 + [True] + [False] * 2])


def test_bfloat16_is_close_to_float32():
    x_BTD = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, TINY.embed_dim)))
    low = mlp_of(numerics=NumericsConfig(dtype="bfloat16"), mlp=MlpConfig(bias=True))(
        x_BTD.astype(jnp.bfloat16)
    )
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low, mlp_of(mlp=MlpConfig(bias=True))(x_BTD)) < 2e-2


def test_a_clamped_gate_equals_the_formula_of_gpt_oss():
    gate, up = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32)
    g, u = torch.tensor(gate).clamp(max=0.7), torch.tensor(up).clamp(-0.7, 0.7)
    expected = g * torch.sigmoid(1.3 * g) * (u + 1)
    config = MlpConfig(clamp=ClampConfig(limit=0.7, alpha=1.3))
    assert relative_l2(gated(config, jnp.asarray(gate), jnp.asarray(up)), expected) < TOLERANCE
