"""RMS norm equals the formula in float64, casts in the order of transformers, never overflows."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from tiny import TINY, relative_l2
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from jaxllm.config import NormConfig, NumericsConfig, with_fields
from jaxllm.layers.norm import Norm, saturate

TOLERANCE = 1e-6  # relative L2, float32


def norm_of(scale: np.ndarray, **changes) -> Norm:
    norm = Norm("D", scale.shape, with_fields(TINY, **changes))
    norm.scale.set_value(jnp.asarray(scale, norm.scale.get_value().dtype))
    return norm


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", [1, 2, 33, 1024])
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e6])
def test_rms_norm_equals_the_formula(width, magnitude):
    x_BTD, scale = magnitude * draw(0, 2, 7, width) + magnitude, draw(1, width) + 1
    x = x_BTD.astype(np.float64)
    rms = np.sqrt((x**2).mean(-1, keepdims=True) + TINY.norms.eps)
    assert relative_l2(norm_of(scale)(x_BTD), x / rms * scale) < TOLERANCE


def test_eps_is_the_config_s_and_inside_the_root():
    scale = np.array([2.0, 3.0])
    x_BTD = np.full((1, 1, 2), 1e-3, np.float32)
    for eps in (1e-6, 1e-2):
        expected = 1e-3 / np.sqrt(1e-6 + eps) * scale
        out = norm_of(scale, norms=NormConfig(eps=eps))(x_BTD)
        assert relative_l2(out, expected[None, None]) < TOLERANCE


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_low_precision_casts_match_transformers(name):
    """Normalizes in float32, casts, then scales: another order would round differently."""
    dtype = np.dtype(name) if name == "float16" else np.dtype(ml_dtypes.bfloat16)
    x, scale = draw(0, 4, 64, 128).astype(dtype), (draw(1, 128) + 1).astype(dtype)
    original = LlamaRMSNorm(128, eps=TINY.norms.eps)
    original.weight = torch.nn.Parameter(
        torch.tensor(scale.astype(np.float32), dtype=getattr(torch, name))
    )
    with torch.no_grad():
        theirs = original(torch.tensor(x.astype(np.float32), dtype=getattr(torch, name)))
    ours = norm_of(scale, numerics=NumericsConfig(param_dtype=name))(jnp.asarray(x))
    assert ours.dtype == dtype
    ours, theirs = np.asarray(ours, np.float32), theirs.float().numpy()
    # The float32 roots may differ in the last bit, which rarely changes how a value is rounded.
    assert (ours != theirs).mean() < 1e-3
    late = x.astype(np.float32) / np.sqrt((x.astype(np.float32) ** 2).mean(-1, keepdims=True))
    assert (ours != (late * scale.astype(np.float32)).astype(dtype).astype(np.float32)).mean() > 0.1


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_squares_do_not_overflow(name):
    x_BTD = jnp.full((1, 2, 64), 6e4, name)
    out = norm_of(np.ones(64), numerics=NumericsConfig(param_dtype=name))(x_BTD)
    np.testing.assert_allclose(np.asarray(out, np.float32), 1, rtol=1e-2)


def test_zeros_give_finite_values_and_gradients():
    norm = norm_of(draw(1, 8))
    zeros = jnp.zeros((1, 3, 8))
    assert (norm(zeros) == 0).all()
    gradient = jax.grad(lambda x: norm(x).sum())(zeros)
    assert np.isfinite(gradient).all()


def test_gradients_match_torch():
    x_BTD, scale, weight = draw(0, 2, 5, 24), draw(1, 24) + 1, draw(2, 2, 5, 24)
    graphdef, state = nnx.split(norm_of(scale))
    ours = jax.grad(lambda s, x: (nnx.merge(graphdef, s)(x) * weight).sum(), argnums=(0, 1))(
        state, jnp.asarray(x_BTD)
    )
    theirs = LlamaRMSNorm(24, eps=TINY.norms.eps)
    theirs.weight = torch.nn.Parameter(torch.tensor(scale))
    x = torch.tensor(x_BTD, requires_grad=True)
    (theirs(x) * torch.tensor(weight)).sum().backward()
    assert relative_l2(ours[0]["scale"].get_value(), theirs.weight.grad) < TOLERANCE
    assert relative_l2(ours[1], x.grad) < TOLERANCE


@pytest.mark.parametrize("kind", ["rms", "rms_float32", "rms_plus_one", "layer"])
def test_gradients_of_scales_are_not_rounded_to_the_activations_dtype(kind):
    x_BTD, weight = (jnp.asarray(draw(seed, 2, 5, 24), jnp.bfloat16) for seed in (0, 2))
    graphdef, state = nnx.split(norm_of(draw(1, 24) + 1, norms=NormConfig(kind=kind)))

    def weighted(state, x_BTD):
        return (nnx.merge(graphdef, state)(x_BTD) * weight).astype(jnp.float32).sum()

    ours = jax.grad(weighted)(state, x_BTD)["scale"].get_value()
    x = np.asarray(x_BTD, np.float64)
    x -= x.mean(-1, keepdims=True) if kind == "layer" else 0
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + TINY.norms.eps)
    if kind == "rms":
        x = x.astype(np.float32).astype(jnp.bfloat16).astype(np.float64)
    expected = (x * np.asarray(weight, np.float64)).sum((0, 1))
    assert relative_l2(ours, expected) < TOLERANCE


def test_only_numbers_beyond_the_range_are_saturated():
    x = jnp.asarray([1.5, -7e4, 65504.0, 1e30, jnp.nan])
    assert saturate(x, "float32") is x
    expected = [1.5, -65504, 65504, 65504, np.nan]
    np.testing.assert_array_equal(saturate(x, "float16"), np.asarray(expected, np.float16))


@pytest.mark.parametrize("kind", ["layer", "layer_unbiased", "layer_bare"])
def test_layer_norms_equal_pytorch_s(kind):
    norm = Norm("D", (33,), with_fields(TINY, {"norms.kind": kind}))
    given = {}
    for seed, (name, part) in enumerate({"weight": norm.scale, "bias": norm.bias}.items()):
        if part is not None:
            given[name] = torch.tensor(draw(seed, 33) + 1)
            part.set_value(jnp.asarray(given[name]))
    assert len(given) == {"layer": 2, "layer_unbiased": 1, "layer_bare": 0}[kind]
    x_BTD = 3 * draw(5, 2, 7, 33) + 1
    expected = torch.nn.functional.layer_norm(
        torch.tensor(x_BTD), (33,), **given, eps=TINY.norms.eps
    )
    assert relative_l2(norm(x_BTD), expected) < TOLERANCE


def test_each_head_is_normalized_by_itself_with_its_own_scale():
    scale_NH, x_BTNH = draw(1, 4, 8) + 1, 3 * draw(2, 2, 5, 4, 8) + 1
    norm = Norm("NH", (4, 8), TINY, kind="layer_unbiased", num_axes=1)
    norm.scale.set_value(jnp.asarray(scale_NH))
    for n in range(4):
        expected = torch.nn.functional.layer_norm(
            torch.tensor(x_BTNH[:, :, n]), (8,), torch.tensor(scale_NH[n]), eps=TINY.norms.eps
        )
        assert relative_l2(norm(x_BTNH)[:, :, n], expected) < TOLERANCE
