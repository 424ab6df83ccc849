"""Splitting and binding keep every parameter in place; initialization creates sharded ones."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh
from tiny import TINY, random_model

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import AttentionConfig, HeadConfig, with_fields
from jaxllm.errors import OTHER_VERSION, CheckpointError, UserError
from jaxllm.models import build, build_abstract
from jaxllm.params import (
    count_parameters,
    describe,
    from_description,
    initialize,
    map_parameters,
    named_parameters,
    parameter_shardings,
    split,
    with_arrays,
)

MESH_SHAPES = [(8, 1, 1), (1, 4, 2), (2, 2, 2)]


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def values(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}


def assert_same_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    differ = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not differ


@pytest.fixture(scope="module")
def model():
    return random_model(
        head=HeadConfig(tied=True), attention=AttentionConfig(qkv_bias=True, out_bias=True)
    )


@pytest.fixture(scope="module")
def deep():
    """Twelve unstacked layers; as strings, their indices would sort as 0, 1, 10, 11, 2."""
    abstract = build_abstract(dataclasses.replace(TINY, num_layers=12, scan_layers=False))
    rng = np.random.default_rng(3)
    shapes = {name: v.get_value().shape for name, v in named_parameters(abstract).items()}
    return with_arrays(abstract, {n: jnp.asarray(rng.random(s)) for n, s in shapes.items()})


@pytest.mark.parametrize("which", ["model", "deep"])
def test_bind_undoes_split(which, request):
    model = request.getfixturevalue(which)
    bind, params = split(model)
    bound = bind(params)
    assert bound.config == model.config
    assert_same_bits(values(bound), values(model))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("which", ["model", "deep"])
def test_each_array_is_bound_to_the_parameter_of_its_name(which, request):
    model = request.getfixturevalue(which)
    bind, _ = split(model)
    names = map_parameters(model, lambda name, _: name)
    for name, variable in named_parameters(bind(names)).items():
        assert variable.get_value() == name


def test_with_arrays_needs_and_replaces_every_parameter(model):
    new = {name: jnp.asarray(value + 1) for name, value in values(model).items()}
    before = values(model)
    assert_same_bits(values(with_arrays(model, new)), {k: np.asarray(v) for k, v in new.items()})
    assert_same_bits(values(model), before)
    wrong = {**new, "final_norm.bias": new["final_norm.scale"]}
    wrong["embed.embedding"] = new["embed.embedding"].T
    del wrong["final_norm.scale"]
    named = r": embed\.embedding, final_norm\.bias, final_norm\.scale"
    with pytest.raises(ValueError, match=named):
        with_arrays(model, wrong)


def test_names_are_attribute_paths():
    stacked = named_parameters(build_abstract(TINY))
    listed = named_parameters(build_abstract(dataclasses.replace(TINY, scan_layers=False)))
    assert len(stacked) == 12
    assert "layers.0:3.attn.q_proj.kernel" in stacked
    expected = {
        name.replace("layers.0:3.", f"layers.{i}.")
        for name in stacked
        for i in range(TINY.num_layers)
    }
    assert listed.keys() == expected


def test_count_equals_the_formula():
    c = TINY
    attention = 2 * c.embed_dim * c.head_dim * (c.num_heads + c.num_kv_heads)
    layer = attention + 3 * c.embed_dim * c.mlp_dim + 2 * c.embed_dim
    expected = c.num_layers * layer + 2 * c.vocab_size * c.embed_dim + c.embed_dim
    assert count_parameters(build_abstract(c)) == expected
    tied = build_abstract(with_fields(c, {"head.tied": True}))
    assert count_parameters(tied) == expected - c.vocab_size * c.embed_dim


@pytest.fixture(scope="module")
def unsharded():
    create = jax.jit(lambda: split(build(TINY, rngs=nnx.Rngs(7)))[1])
    bind, _ = split(build_abstract(TINY))
    return values(bind(create()))


@pytest.mark.cases(1)
@pytest.mark.parametrize("shape", MESH_SHAPES)
def test_initialization_does_not_depend_on_the_mesh(shape, unsharded):
    mesh = mesh_of(shape)
    model = initialize(TINY, mesh, 7)
    assert_same_bits(values(model), unsharded)
    placed = parameter_shardings(model, mesh)
    for name, variable in named_parameters(model).items():
        assert variable.get_value().sharding == placed[name], name


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_a_seed_beyond_32_bits_is_rejected(seed):
    with pytest.raises(UserError, match=rf"^seed={seed} is not in"):
        initialize(TINY, mesh_of((8, 1, 1)), seed)


def test_initial_weights_differ_by_layer_and_seed(unsharded):
    other = values(initialize(TINY, mesh_of((8, 1, 1)), 8))
    for name, value in unsharded.items():
        if name.endswith("scale"):
            assert (value == 1).all(), name
            continue
        assert (value != other[name]).mean() > 0.99, name
        np.testing.assert_allclose(value.std(), TINY.init.std, rtol=0.1)
        if name.startswith("layers."):
            assert (value[0] != value[1]).mean() > 0.99, name


@pytest.mark.parametrize("with_origin", [True, False])
def test_description_round_trips_through_json(with_origin, model):
    described = with_arrays(model, {n: v.get_value() for n, v in named_parameters(model).items()})
    if with_origin:
        described.origin = Origin(family="f", config="{}", layout="{}", directory="/somewhere")
    read = from_description(json.loads(json.dumps(describe(described))))
    assert read.config == model.config
    assert read.origin == described.origin
    shapes = {name: v.get_value() for name, v in named_parameters(read).items()}
    for name, variable in named_parameters(model).items():
        assert (shapes[name].shape, shapes[name].dtype) == (
            variable.get_value().shape,
            variable.get_value().dtype,
        )


def test_from_description_lists_every_problem(model):
    wrong = describe(model)
    wrong["config"] |= {"new_field": 1, "num_layers": None}
    wrong["origin"] = 3
    with pytest.raises(CheckpointError) as error:
        from_description(wrong)
    assert error.value.exit_status == 1
    *problems, last = error.value.problems
    assert last == OTHER_VERSION
    for name in ("num_layers", "new_field", "origin"):
        assert any(name in problem for problem in problems)
    with pytest.raises(CheckpointError, match="config is missing\norigin is missing"):
        from_description({})


def test_from_description_applies_changes(model):
    read = from_description(describe(model), {"numerics.dtype": "bfloat16"}, remat="full")
    assert read.config == with_fields(model.config, {"numerics.dtype": "bfloat16"}, remat="full")
    with pytest.raises(TypeError, match="no_such_field"):
        from_description(describe(model), no_such_field=1)
