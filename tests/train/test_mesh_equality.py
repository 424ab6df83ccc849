"""Layouts change no number: one device, any mesh, any accumulation, chunk or form of the layers."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tiny import TINY, random_model, relative_l2

from jaxllm.config import Experts, LayerKind
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters, shardings, split, tree_of
from jaxllm.sharding import MESH_AXES, spec
from jaxllm.train import TrainConfig
from jaxllm.train.loss import next_token_loss
from jaxllm.train.step import accumulate, make_steps

TOLERANCE = 1e-5  # relative, float32
B, T = 16, 24
# Four ways do not divide two key/value heads: those stay whole.
MESHES = {
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "fsdp=4 x tensor=2": {"fsdp": 4, "tensor": 2},
    "tensor=4 x data=2": {"tensor": 4, "data": 2},
    "data=2 x fsdp=2 x tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
}
CHANGES = {"num_layers": 2, "qkv_bias": True, "attn_out_bias": True, "mlp_bias": True}


def submesh(sizes: dict[str, int]) -> Mesh:
    """A mesh over as many of the devices as it needs."""
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    return jax.make_mesh(
        shape,
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=jax.devices()[: math.prod(shape)],
    )


def on_mesh(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    rows = NamedSharding(mesh, PartitionSpec(*spec("B", (B,), mesh.shape), None))
    return {name: jax.device_put(x, rows) for name, x in batch.items()}


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Rows of which very different numbers of targets count, one of them none."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, TINY.vocab_size, (B, T + 1)).astype(np.int32)
    return {"tokens": tokens, "mask": rng.random((B, T)) < np.linspace(0, 1, B)[:, None]}


def loss_and_gradient(
    model, batch, sizes: dict[str, int], *, microbatches: int = 1, chunk: int = 512
) -> tuple[float, dict[str, np.ndarray]]:
    """On a mesh; the gradients by name, gathered, those of single layers stacked."""
    mesh = submesh(sizes)
    bind, params = split(model)
    placed = shardings(model, mesh)
    places = tree_of(model, lambda name, _: placed[name])

    def loss(params, batch, key):
        total, aux_loss = next_token_loss(bind(params), batch["tokens"], batch["mask"], chunk, key)
        return total + aux_loss * batch["mask"].sum()

    def both(params, batch):
        return accumulate(jax.value_and_grad(loss), params, batch, microbatches)

    with jax.set_mesh(mesh):
        value, gradient = jax.jit(both, out_shardings=(None, places))(
            jax.device_put(params, places), on_mesh(batch, mesh)
        )
    stacked = with_scanned_layers(bind(gradient), True)
    named = named_parameters(stacked)
    return float(value), {name: np.asarray(v.get_value()) for name, v in named.items()}


def assert_equal(ours: tuple[float, dict], theirs: tuple[float, dict]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=TOLERANCE)
    assert ours[1].keys() == theirs[1].keys()
    apart = {name: relative_l2(ours[1][name], theirs[1][name]) for name in ours[1]}
    # The bias of keys adds the same to all scores of a query: its gradient is rounding alone.
    apart.pop("layers.0:3.attn.k_proj.bias", None)
    assert max(apart.values()) < TOLERANCE, apart


@pytest.fixture(scope="module")
def alone(batch):
    """What all others must equal: one device, one batch, all logits at once."""
    return loss_and_gradient(random_model(**CHANGES), batch, {})


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_loss_and_gradients_are_those_of_one_device(sizes, batch, alone):
    assert_equal(loss_and_gradient(random_model(**CHANGES), batch, sizes), alone)


@pytest.mark.parametrize(
    ("microbatches", "sizes"),
    [(2, {}), (4, {"fsdp": 2, "tensor": 2})],
    ids=str,
)
def test_microbatches_weigh_every_target_alike(microbatches, sizes, batch, alone):
    model = random_model(**CHANGES)
    assert_equal(loss_and_gradient(model, batch, sizes, microbatches=microbatches), alone)


def test_chunks_of_logits_change_nothing(batch, alone):
    model = random_model(**CHANGES)
    assert_equal(loss_and_gradient(model, batch, {"fsdp": 4, "tensor": 2}, chunk=7), alone)


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_layers_one_by_one_are_the_same(sizes, batch, alone):
    model = with_scanned_layers(random_model(**CHANGES), False)
    assert_equal(loss_and_gradient(model, batch, sizes), alone)


def test_a_tied_head_sums_both_its_gradients(batch):
    model = random_model(tie_embeddings=True, num_layers=1)
    expected = loss_and_gradient(model, batch, {})
    assert_equal(loss_and_gradient(model, batch, {"fsdp": 4, "tensor": 2}, chunk=7), expected)


def test_recomputing_on_a_mesh_changes_nothing(batch, alone):
    model = random_model(**CHANGES, remat="full")
    assert_equal(loss_and_gradient(model, batch, {"fsdp": 4, "tensor": 2}), alone)


# Every other layer has experts, which eight ways do not divide: those stay whole.
SPARSE = {
    "num_layers": 4,
    "pattern": (LayerKind(), LayerKind(mlp="experts")),
    "experts": Experts(
        num_experts=4, top_k=2, mlp_dim=24, normalize=True, shared_mlp_dim=40, aux_weight=0.1
    ),
    "mlp_bias": True,
}
EXPERT_MESHES = {
    "expert=4": {"expert": 4},
    "expert=8": {"expert": 8},
    "data=4 x expert=2": {"data": 4, "expert": 2},
    "fsdp=2 x tensor=2 x expert=2": {"fsdp": 2, "tensor": 2, "expert": 2},
    "data=2 x fsdp=2 x tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.fixture(scope="module")
def sparse_alone(batch):
    return loss_and_gradient(random_model(**SPARSE), batch, {})


@pytest.mark.parametrize("sizes", EXPERT_MESHES.values(), ids=EXPERT_MESHES)
def test_experts_on_a_mesh_are_those_of_one_device(sizes, batch, sparse_alone):
    assert_equal(loss_and_gradient(random_model(**SPARSE), batch, sizes), sparse_alone)


def test_experts_are_split_over_their_number_and_both_their_widths():
    mesh = submesh({"fsdp": 2, "tensor": 2, "expert": 2})
    placed = {
        name.removeprefix("layers.1:4:2.mlp."): sharding.spec
        for name, sharding in shardings(random_model(**SPARSE), mesh).items()
    }
    up, down = (
        PartitionSpec(None, "expert", "fsdp", "tensor"),
        PartitionSpec(None, "expert", "tensor", "fsdp"),
    )
    assert placed["gate_proj.kernel"] == placed["up_proj.kernel"] == up
    assert placed["down_proj.kernel"] == down
    assert placed["up_proj.bias"] == PartitionSpec(None, "expert", "tensor")
    assert placed["router.kernel"] == PartitionSpec(None, "fsdp", "expert")


@pytest.fixture
def really_compiling() -> Iterator[None]:
    """A program from the cache says nothing on stderr."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


INVOLUNTARY = "nvoluntary full rematerialization"


@pytest.mark.parametrize(
    ("mesh_name", "microbatches"),
    [
        *((name, 2) for name in MESHES),
        ("data=2 x fsdp=2 x tensor=2", 1),
        *((name, 1) for name in EXPERT_MESHES if "expert" in name),
    ],
)
def test_no_array_is_gathered_against_the_compiler_s_will(
    mesh_name, microbatches, really_compiling, capfd
):
    sizes = {**MESHES, **EXPERT_MESHES}[mesh_name]
    mesh = submesh(sizes)
    config = TrainConfig(
        output="nowhere",
        steps=10,
        batch_size=B,
        seq_len=T,
        model=TINY,
        accumulate=microbatches,
        loss_chunk=7,
    )
    model = random_model(**SPARSE if "expert" in sizes else CHANGES)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model, mesh)
        rows = NamedSharding(mesh, PartitionSpec(*spec("B", (B,), mesh.shape), None))
        batch = {
            "tokens": jax.ShapeDtypeStruct((B, T + 1), jnp.int32, sharding=rows),
            "mask": jax.ShapeDtypeStruct((B, T), bool, sharding=rows),
        }
        compiled = steps.train.lower(steps.abstract_state, batch).compile()
    assert INVOLUNTARY not in capfd.readouterr().err
    if "fsdp" in sizes:  # each device holds its part of the state, not all of it
        whole = sum(x.size * 4 for x in jax.tree.leaves(steps.abstract_state))
        assert compiled.memory_analysis().argument_size_in_bytes < whole / 3


def test_the_compiler_s_complaint_would_be_seen(really_compiling, capfd):
    """A lookup in a table that is split over both its dimensions."""
    mesh = submesh({"data": 2, "fsdp": 2, "tensor": 2})
    table = jax.ShapeDtypeStruct(
        (96, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    )
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows)

    def lookup(table, tokens):
        found = PartitionSpec(("data", "fsdp"), None, None)
        x = jax.lax.with_sharding_constraint(table[tokens], NamedSharding(mesh, found))
        return jnp.sin(x).sum()

    jax.jit(jax.grad(lookup)).lower(table, tokens).compile()
    assert INVOLUNTARY in capfd.readouterr().err


def test_a_whole_step_is_that_of_one_device(batch):
    """Loss, norm of the gradient, and the parameters after three steps of AdamW."""
    results = []
    for sizes in ({}, {"fsdp": 4, "tensor": 2}):
        mesh = submesh(sizes)
        config = TrainConfig(
            output="nowhere",
            steps=10,
            batch_size=B,
            seq_len=T,
            model=dataclasses.replace(TINY, num_layers=2),
        )
        model = random_model(num_layers=2)
        bind, params = split(model)
        with jax.set_mesh(mesh):
            steps = make_steps(config, model, mesh)
            places = jax.tree.map(lambda x: x.sharding, steps.abstract_state.params)
            state = steps.init(jax.device_put(params, places))
            numbers = []
            for _ in range(3):
                state, metrics = steps.train(state, on_mesh(batch, mesh))
                numbers += [float(metrics[name]) for name in ("loss", "grad_norm")]
        assert int(state.step) == 3
        found = jax.tree.map(lambda x: x.sharding, state)
        assert found == jax.tree.map(lambda x: x.sharding, steps.abstract_state)
        named = named_parameters(bind(state.params))
        results.append((numbers, {n: np.asarray(v.get_value()) for n, v in named.items()}))
    (numbers, ours), (expected, theirs) = results
    assert numbers == pytest.approx(expected, rel=TOLERANCE)
    for name in ours:
        assert relative_l2(ours[name], theirs[name]) < TOLERANCE, name
