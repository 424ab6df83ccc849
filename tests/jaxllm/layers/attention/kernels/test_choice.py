"""The choice of a kernel by platform and by what a model asks for."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from tiny import random_model

from jaxllm.config import AttentionConfig, PositionConfig
from jaxllm.errors import UserError
from jaxllm.layers.attention import attention
from jaxllm.layers.attention.kernels import choice
from jaxllm.layers.attention.kernels.call import Call
from jaxllm.layers.attention.kernels.choice import KERNELS, choose_kernel
from jaxllm.layers.attention.mask import MaskSpec


@pytest.fixture
def on_platform(monkeypatch):
    """Makes programs run on a platform, as far as the choice can tell."""

    def choose(platform: str) -> None:
        monkeypatch.setattr(choice, "platform", lambda: platform)
        choice._say_once.cache_clear()

    return choose


@pytest.mark.parametrize(("platform", "name"), [("tpu", "splash"), ("gpu", "triton")])
def test_auto_takes_the_kernel_of_the_platform(on_platform, platform, name):
    on_platform(platform)
    kernel = choose_kernel("auto", "bfloat16", has_bias=False)
    assert kernel.func is KERNELS[name].load()
    assert kernel.keywords == {"interpret": False}
    assert choose_kernel("blocks", "bfloat16", has_bias=False) is None


def test_cpus_compute_in_blocks_unless_a_kernel_is_named():
    assert choose_kernel("auto", "bfloat16", has_bias=False) is None
    assert choose_kernel("triton", "float32", has_bias=False).keywords == {"interpret": True}


def test_what_a_kernel_lacks_is_logged_once(on_platform, caplog):
    on_platform("tpu")
    with caplog.at_level(logging.INFO, "jaxllm"):
        for _ in range(2):
            assert choose_kernel("auto", "bfloat16", has_bias=True) is None
            assert choose_kernel("auto", "float32", has_bias=False) is None
    assert [record.getMessage() for record in caplog.records] == [
        "attention in blocks of queries: kernel splash lacks a bias of the scores",
        "attention in blocks of queries: kernel splash lacks float32 products",
    ]


def test_a_kernel_that_cannot_be_had_is_refused(on_platform):
    with pytest.raises(UserError, match="'splash' lacks a bias of the scores; set it to 'auto'"):
        choose_kernel("splash", "bfloat16", has_bias=True)
    on_platform("gpu")
    with pytest.raises(UserError, match="'splash' is for TPUs, but the devices are GPUs"):
        choose_kernel("splash", "bfloat16", has_bias=False)


def test_the_platform_is_that_of_the_mesh():
    """A program for devices that are not there is compiled for them."""
    device = AbstractDevice("TPU v5", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        kernel = choose_kernel("auto", "bfloat16", has_bias=False)
    assert kernel.func is KERNELS["splash"].load()
    assert kernel.keywords == {"interpret": False}


def test_the_config_reaches_the_kernel(monkeypatch):
    given = []

    def record(kernel, q, k, v, call):
        given.append((kernel, call))
        return q

    monkeypatch.setattr(attention, "on_devices", record)
    changes = AttentionConfig(kernel="triton", scale=0.7, softcap=2.0)
    model = random_model(num_layers=1, scan_layers=False, attention=changes)
    tokens, segment_ids = np.zeros((2, 6), int), np.array([[1, 1, 1, 2, 2, 0]] * 2)
    model(tokens, segment_ids=segment_ids)
    ((kernel, call),) = given
    assert kernel.func is KERNELS["triton"].load()
    assert (call.scale, call.softcap) == (0.7, 2.0)
    np.testing.assert_array_equal(call.segment_ids_BS, segment_ids)


def test_a_bias_needs_blocks():
    model = random_model(
        num_layers=1,
        positions=PositionConfig(kind="alibi"),
        attention=AttentionConfig(kernel="splash"),
    )
    with pytest.raises(UserError, match="lacks a bias"):
        model(np.zeros((1, 4), int))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("splash", "tpu"),
        # Newer jax lowers Triton's kernels only where it knows the device.
        pytest.param("triton", "cuda", marks=pytest.mark.pinned),
    ],
)
def test_programs_for_accelerators_hold_no_scores(name, target):
    """Lowered for the real targets, forward and backward: no array spans queries and keys."""
    T, spec = 1000, MaskSpec(window=700)
    call = Call(spec, jnp.arange(T)[None], None, 0.1, order=np.arange(T)[None])

    def total(q, k, v):
        return KERNELS[name].load()(q, k, v, call).astype(jnp.float32).sum()

    q, k = (jax.ShapeDtypeStruct((1, T, N, 128), jnp.bfloat16) for N in (4, 2))
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k)
    program = traced.lower(lowering_platforms=(target,)).as_text()
    assert program.count({"tpu": "@tpu_custom_call(", "cuda": "xla.gpu.triton"}[target]) == 3
    shapes = [[*map(int, found.split("x"))] for found in re.findall(r"tensor<([\dx]+)x", program)]
    assert [1, 4, 1024] in shapes, "a number per head and query"
    assert not [shape for shape in shapes if sum(size >= T for size in shape) > 1]
