"""Attention on every mesh, with sequences split or not, is that of one device."""

import functools

import jax
import numpy as np
import pytest
from attention_cases import Case, check, plain
from tiers import examples, exhaustive

from jaxllm.layers.attention.kernels.call import Call
from jaxllm.layers.attention.kernels.choice import KERNELS
from jaxllm.layers.attention.kernels.devices import on_devices, orders
from jaxllm.layers.attention.mask import MaskSpec
from jaxllm.train.mesh import make_mesh

MESHES = {
    "data=2 x fsdp=2 x tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
    "tensor=8": {"tensor": 8},  # more devices than key/value heads
    "sequence=8": {"sequence": 8},
    "sequence=4 x tensor=2": {"sequence": 4, "tensor": 2},
    "fsdp=2 x sequence=2 x tensor=2": {"fsdp": 2, "sequence": 2, "tensor": 2},
}
WHOLE = Case(T=192, N=8, B=4, is_packed=True, softcap=2.0, has_sinks=True)
SPLIT = {
    "causal": Case(T=64, N=8, B=4),
    "packed, a window": Case(T=96, N=8, B=4, is_packed=True, spec=MaskSpec(window=20)),
    "packed chunks": Case(T=96, N=8, B=1, is_packed=True, spec=MaskSpec(chunk=11)),
    "packed, all features": WHOLE,
    "parts of odd length": Case(T=8 * 13, N=8, B=4, is_packed=True),
    "length that no device divides": Case(T=77, N=8, B=4),
}


@pytest.mark.parametrize("mesh", examples(MESHES, "tensor=8", "fsdp=2 x sequence=2 x tensor=2"))
def test_every_mesh_gives_the_outputs_and_gradients_of_one_device(mesh):
    with jax.set_mesh(make_mesh(**MESHES[mesh])):
        check(WHOLE, functools.partial(on_devices, plain))


@pytest.mark.parametrize("name", examples(SPLIT, "packed, a window"))
@pytest.mark.parametrize("ways", [4])
def test_split_sequences_equal_whole_ones(name, ways):
    with jax.set_mesh(make_mesh(sequence=ways, devices=jax.devices())):
        check(SPLIT[name], functools.partial(on_devices, plain))


@pytest.mark.parametrize("kernel", examples(KERNELS, "splash"))
@pytest.mark.parametrize("window", [None, *exhaustive([20])])
def test_kernels_on_split_sequences_match_the_definition(kernel, window):
    apply = functools.partial(KERNELS[kernel].load(), interpret=True)
    case = Case(T=64, K=1, B=1, N=2, spec=MaskSpec(window=window), is_packed=True, has_sinks=True)
    with jax.set_mesh(make_mesh(sequence=2, tensor=2, devices=jax.devices())):
        check(case, functools.partial(on_devices, apply))


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_causal_work_is_balanced(shards):
    """Each shard's queries see as many keys, up to the tokens of a part."""
    T = 2 * shards * 5
    order = orders(Call(MaskSpec(), np.arange(T)[None], None, 1.0), T, shards)
    assert sorted(order.reshape(-1)) == list(range(T))
    assert np.ptp((order + 1).sum(axis=1)) == 0


def test_windows_keep_queries_where_they_are():
    call = Call(MaskSpec(window=4), np.arange(16)[None], None, 1.0)
    np.testing.assert_array_equal(orders(call, 16, 4).reshape(-1), np.arange(16))
