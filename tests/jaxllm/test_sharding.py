"""Sharding by dimension letters uses each mesh axis once, splits evenly and fits parameters."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, PartitionSpec
from tiny import TINY

from jaxllm.config import ExpertsConfig, LayerKind, with_fields
from jaxllm.models import build_abstract
from jaxllm.params import dim_letters, named_parameters, parameter_shardings
from jaxllm.sharding import (
    DIMS,
    MESH_AXES,
    constrain,
    named_sharding,
    partition_spec,
    unsharded_dims,
)

SIZES = {
    "V": TINY.vocab_size,
    "D": TINY.embed_dim,
    "L": TINY.num_layers,
    "N": TINY.num_heads,
    "K": TINY.num_kv_heads,
    "H": TINY.head_dim,
    "F": TINY.mlp_dim,
}

# Every size that the table splits is a multiple of 8, and no two are equal.
EVEN = dataclasses.replace(
    TINY, vocab_size=96, embed_dim=64, num_heads=16, num_kv_heads=8, head_dim=4, mlp_dim=80
)

meshes = st.fixed_dictionaries({axis: st.integers(1, 8) for axis in MESH_AXES})
arrays = st.lists(
    st.tuples(st.sampled_from(sorted(DIMS)), st.integers(1, 48)), min_size=0, max_size=5
)


def mesh_of(**sizes: int) -> Mesh:
    """A mesh of these axis sizes over the first devices."""
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def axes_of(dims: str, shape: list[int], mesh: dict[str, int]) -> list[tuple[str, ...]]:
    """The mesh axes of each dimension; a PartitionSpec writes a single one without its tuple."""
    parts = partition_spec(dims, shape, mesh)
    return [(part,) if isinstance(part, str) else part or () for part in parts]


@given(arrays, meshes)
def test_axis_is_used_once_splits_evenly_and_is_skipped_only_if_it_must_be(array, mesh):
    dims, shape = "".join(letter for letter, _ in array), [size for _, size in array]
    parts = axes_of(dims, shape, mesh)
    assert len(parts) == len(dims)
    used = [axis for part in parts for axis in part]
    assert len(used) == len(set(used))
    taken: set[str] = set()
    for letter, size, part in zip(dims, shape, parts, strict=True):
        assert size % math.prod(mesh[axis] for axis in part) == 0
        assert [axis for axis in DIMS[letter] if axis in part] == list(part)
        ways = 1
        for axis in DIMS[letter]:
            if axis in part:
                ways *= mesh[axis]
            else:
                assert mesh[axis] == 1 or axis in taken or size % (ways * mesh[axis])
        taken.update(part)


@given(arrays, meshes)
def test_unsharded_dims_lists_the_unused_axes(array, mesh):
    dims, shape = "".join(letter for letter, _ in array), [size for _, size in array]
    used = {axis for part in axes_of(dims, shape, mesh) for axis in part}
    whole = unsharded_dims(dims, shape, mesh)
    wanted = {axis for letter in dims for axis in DIMS[letter] if mesh[axis] > 1}
    assert {axis for axis, _, _ in whole} == wanted - used
    assert all((letter, size) in array for _, letter, size in whole)


@pytest.mark.parametrize(
    ("dims", "shape", "mesh", "expected"),
    [
        ("BTD", (8, 5, 32), {"fsdp": 4, "data": 2}, (("data", "fsdp"), None, None)),
        ("BTD", (8, 5, 32), {}, (None, None, None)),
        ("DF", (32, 56), {"fsdp": 4, "tensor": 2}, (("fsdp",), ("tensor",))),
        # On four tensor-parallel devices, two key/value heads stay unsharded; four heads are split.
        ("DKH", (32, 2, 16), {"tensor": 4}, (None, None, None)),
        ("DNH", (32, 4, 16), {"tensor": 4}, (None, ("tensor",), None)),
        # One sequence: no axis of the batch divides it, so D gets fsdp.
        ("BTD", (1, 5, 32), {"data": 2, "fsdp": 4}, (None, None, ("fsdp",))),
        # Only some of the axes divide the size.
        ("B", (4,), {"data": 4, "fsdp": 2}, (("data",),)),
        ("B", (6,), {"data": 4, "fsdp": 2}, (("fsdp",),)),
        ("V.", (96, 32), {"tensor": 2, "fsdp": 4}, (("tensor",), None)),
    ],
)
def test_partition_specs_equal_hand_written_ones(dims, shape, mesh, expected):
    assert partition_spec(dims, shape, mesh) == PartitionSpec(*expected)


def test_dims_and_shape_must_have_the_same_length():
    with pytest.raises(ValueError, match="shorter"):
        partition_spec("BTD", (2, 3), {})


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention.qkv_bias": True, "attention.out_bias": True, "mlp.bias": True},
        {"head.tied": True},
    ],
)
def test_letters_of_every_parameter_match_its_shape(changes, scan):
    model = build_abstract(with_fields(TINY, changes, scan_layers=scan))
    for name, variable in named_parameters(model).items():
        shape = tuple(SIZES[letter] for letter in dim_letters(variable))
        assert shape == variable.get_value().shape, name
        assert dim_letters(variable).startswith("L") == (scan and name.startswith("layers.")), name


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 8},
        {"fsdp": 8},
        {"tensor": 8},
        {"fsdp": 4, "tensor": 2},
        {"data": 2, "tensor": 4},
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
)
def test_device_shards_match_the_letters(sizes):
    """Each device holds exactly the part of a parameter that its letters imply."""
    mesh = mesh_of(**sizes)
    config = with_fields(
        EVEN, {"attention.qkv_bias": True, "attention.out_bias": True, "mlp.bias": True}
    )
    model = build_abstract(config)
    placed = parameter_shardings(model, mesh)
    assert placed.keys() == named_parameters(model).keys()
    for name, variable in named_parameters(model).items():
        shape = variable.get_value().shape
        held = math.prod(placed[name].shard_shape(shape))
        ways = sizes.get("fsdp", 1) ** ("D" in variable.dims)
        ways *= sizes.get("tensor", 1) ** any(letter in variable.dims for letter in "NKFV")
        assert held * ways == math.prod(shape), name
        assert placed[name].memory_kind == jax.devices()[0].default_memory().kind


def test_shards_tile_the_array():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    array = np.arange(32 * 4 * 16).reshape(32, 4, 16)
    placed = jax.device_put(array, named_sharding("DNH", array.shape, mesh))
    covered = np.zeros(array.shape, int)
    for shard in placed.addressable_shards:
        assert shard.data.shape == (16, 2, 16)
        np.testing.assert_array_equal(shard.data, array[shard.index])
        covered[shard.index] += 1
    assert (covered == 2).all()  # once on each half of the data axis


def test_constrain_shards_activations_only_under_a_mesh():
    x_BTD = jnp.ones((8, 3, 32))
    assert constrain(x_BTD, "BTD") is x_BTD
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: constrain(x, "BTD"))(x_BTD)
    assert out.sharding.is_equivalent_to(named_sharding("BTD", x_BTD.shape, mesh), 3)
    assert out.addressable_shards[0].data.shape == (2, 3, 32)


def test_abstract_model_has_letters_in_tree_mode():
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        names = named_parameters(build_abstract(TINY))
    assert dim_letters(names["layers.0:3.attn.q_proj.kernel"]) == "LDNH"


@pytest.mark.parametrize("mesh", [{"expert": 8}, {"fsdp": 2, "expert": 4}])
def test_what_is_no_expert_is_split_over_the_axis_of_experts(mesh):
    """No device holds more than 5 % above an even share."""
    experts = ExpertsConfig(num_experts=8, top_k=1, mlp_dim=16, shared_mlp_dim=40)
    model = build_abstract(with_fields(EVEN, experts=experts, pattern=(LayerKind(mlp="experts"),)))
    named = named_parameters(model)
    places = parameter_shardings(model, mesh_of(**mesh))
    shapes = {name: variable.get_value().shape for name, variable in named.items()}
    held = sum(math.prod(places[name].shard_shape(shape)) for name, shape in shapes.items())
    assert 8 * held < 1.05 * sum(map(math.prod, shapes.values()))
