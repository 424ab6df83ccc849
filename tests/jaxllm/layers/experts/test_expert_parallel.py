"""Experts on several devices equal those on one; tokens move between devices, experts do not."""

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec
from tiers import examples, exhaustive
from tiny import TINY, random_model, relative_l2

from jaxllm.config import ExpertsConfig, LayerKind
from jaxllm.generation import generate
from jaxllm.layers.experts import expert_parallel
from jaxllm.layers.experts.balance import balance_of
from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.sharding import MESH_AXES

pytestmark = pytest.mark.usefixtures("really_compiling")

TOLERANCE = 1e-6  # relative L2, float32
E = 8
SPARSE = (LayerKind(mlp="experts"),)
EXPERTS = ExpertsConfig(num_experts=E, top_k=3, mlp_dim=24, aux_weight=1.0)
MESHES = {
    "expert=8": {"expert": 8},
    "fsdp=2 x expert=4": {"fsdp": 2, "expert": 4},
    "fsdp=2 x tensor=2 x expert=2": {"fsdp": 2, "tensor": 2, "expert": 2},
    "data=2 x tensor=2 x expert=2": {"data": 2, "tensor": 2, "expert": 2},
}
CASES = {
    "softmax, gated": ({"normalize": True}, {}),
    "sigmoid of the input, biases, shared": (
        {"scores": "sigmoid", "scale": "input", "shared_mlp_dim": 40},
        {"mlp.bias": True},
    ),
    "capacity, biases, ungated": (
        {"capacity": 3, "router_bias": True, "balance": "kept"},
        {"mlp.bias": True, "mlp.gated": False},
    ),
}
# 21 tokens, which 8 devices do not divide, and 16, two per device.
X_BTD = np.random.default_rng(0).standard_normal((3, 7, TINY.embed_dim)).astype(np.float32)
EVEN_BTD = np.random.default_rng(0).standard_normal((8, 2, TINY.embed_dim)).astype(np.float32)


def mesh_of(sizes: dict[str, int]) -> Mesh:
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    devices, types = jax.devices()[: math.prod(shape)], (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)


def moe_of(experts: ExpertsConfig = EXPERTS, **changes):
    changes = {"num_layers": 1, "scan_layers": False, "pattern": SPARSE, **changes}
    return random_model(experts=experts, **changes).layers["0"].mlp


def gradients(moe, x_BTD: np.ndarray):
    """Returns a compiled function of parameters and x that computes gradients and outputs."""
    graphdef, state = nnx.split(moe)
    weights = np.random.default_rng(1).standard_normal(x_BTD.shape).astype(np.float32)
    is_token_BT = np.random.default_rng(2).random(x_BTD.shape[:2]) < 0.8

    def loss(state, x_BTD):
        out, load = nnx.merge(graphdef, state)(x_BTD, is_token_BT)
        aux = balance_of(moe.experts, [load]).aux_loss
        return jnp.vdot(out, weights) + 10 * aux, (out, load, aux)

    both = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    return both.lower(state, jnp.asarray(x_BTD)).compile(), state


def assert_equal_on_a_mesh(moe, x_BTD: np.ndarray, sizes: dict[str, int]) -> None:
    """Compares outputs, loads, losses and the gradients of parameters and x with one device."""
    run, state = gradients(moe, x_BTD)
    expected = run(state, x_BTD)
    with jax.set_mesh(mesh_of(sizes)):
        run, state = gradients(moe, x_BTD)
        assert "all-to-all" in run.as_text()
        found = run(state, x_BTD)
    flat = jax.tree.leaves_with_path(found)
    for (path, ours), theirs in zip(flat, jax.tree.leaves(expected), strict=True):
        error = np.linalg.norm(np.asarray(ours) - np.asarray(theirs))
        assert error <= TOLERANCE * np.linalg.norm(theirs), jax.tree_util.keystr(path)


@pytest.mark.cases(1, exhaustive=4)
@pytest.mark.parametrize("mesh", examples(MESHES, list(MESHES)[-1]))
@pytest.mark.parametrize("case", examples(CASES, list(CASES)[-1]))
def test_layer_on_a_mesh_equals_one_device(mesh, case):
    sizes, (experts, changes) = MESHES[mesh], CASES[case]
    moe = moe_of(dataclasses.replace(EXPERTS, **experts), **changes)
    assert_equal_on_a_mesh(moe, X_BTD, sizes)


@pytest.mark.parametrize(
    "chosen", exhaustive([[5], [5, 6, 7]]), ids=["one expert", "three experts"]
)
def test_all_tokens_may_choose_few_experts(chosen):
    """The chosen experts are on one or two devices; the other devices get no tokens."""
    moe = moe_of(dataclasses.replace(EXPERTS, top_k=len(chosen), router_bias=True))
    moe.router.bias[...] = jnp.zeros(E).at[np.array(chosen)].set(30.0)
    _, load = moe(EVEN_BTD)
    assert np.flatnonzero(load.chosen_E).tolist() == chosen
    assert_equal_on_a_mesh(moe, EVEN_BTD, MESHES["fsdp=2 x expert=4"])


def test_experts_are_never_gathered():
    """All gathered or summed arrays are smaller than the experts of one device."""
    moe = moe_of(dataclasses.replace(EXPERTS, mlp_dim=640))
    mesh = mesh_of({"expert": 8})
    bind, params = split(moe)
    places = map_parameters(moe, lambda name, variable: parameter_shardings(moe, mesh)[name])
    with jax.set_mesh(mesh):
        gradient = jax.grad(lambda p, x: bind(p)(x)[0].sum(), argnums=(0, 1))
        run = jax.jit(gradient, in_shardings=(places, None), out_shardings=(places, None))
        text = run.lower(params, jnp.asarray(EVEN_BTD)).compile().as_text()
    own = sum(p["kernel"].nbytes for name, p in params.items() if name != "router") // 8
    moved = {kind: bytes_of(text, kind) for kind in ("all-gather", "all-reduce", "all-to-all")}
    assert 0 < moved["all-gather"] + moved["all-reduce"] < own, moved
    assert moved["all-to-all"] > 0


def bytes_of(text: str, kind: str) -> int:
    """Bytes that each device receives by one kind of collective in a compiled program."""
    total = 0
    for line in text.splitlines():
        result, is_kind, _ = line.partition(f" {kind}(")
        if is_kind:
            for bits, sizes in re.findall(r"[a-z](\d+)\[([\d,]*)\]", result):
                total += int(bits) // 8 * math.prod(map(int, filter(None, sizes.split(","))))
    return total


@pytest.mark.exhaustive
def test_scanned_model_on_a_mesh_equals_one_device():
    """Loss and gradients of a model with scanned layers and remat="dots"."""
    model = random_model(num_layers=2, pattern=SPARSE, experts=EXPERTS, remat="dots")
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (4, 6))
    bind, params = split(model)

    def loss(params):
        out = bind(params)(tokens)
        return jnp.square(out.logits).mean() + out.aux_loss

    expected = jax.jit(jax.value_and_grad(loss))(params)
    with jax.set_mesh(mesh_of({"fsdp": 2, "expert": 4})):
        found = jax.jit(jax.value_and_grad(loss))(params)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_l2(ours, theirs) < 10 * TOLERANCE


@pytest.mark.exhaustive
def test_generation_on_a_mesh_gives_the_same_tokens():
    model = random_model(num_layers=1, pattern=SPARSE, experts=EXPERTS)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12]]
    expected = generate(model, prompts, 8)
    with jax.set_mesh(mesh_of({"expert": 8})):
        assert generate(model, prompts, 8) == expected


def documented_ragged_all_to_all(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """Emulates `jax.lax.ragged_all_to_all` as documented, for a backend that lacks it."""
    everyone = partial(jax.lax.all_gather, axis_name=axis_name)
    rows, starts, sizes, offsets = map(
        everyone, (operand, input_offsets, send_sizes, output_offsets)
    )
    here = jax.lax.axis_index(axis_name)
    row = jnp.arange(output.shape[0])
    for source in range(rows.shape[0]):
        offset, size = offsets[source, here], sizes[source, here]
        place = row - offset
        taken = rows[source].at[starts[source, here] + place].get(mode="clip")
        is_row = (place >= 0) & (place < jnp.minimum(size, recv_sizes[source]))
        output = jnp.where(is_row[:, None], taken, output)
    return output


COUNTS = {
    "some": [[2, 0, 3, 1], [0, 0, 0, 0], [1, 1, 1, 1], [4, 0, 0, 2]],
    "all to one": [[0, 6, 0, 0]] * 4,
    "each to itself": np.diag([6, 5, 4, 3]).tolist(),
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_padded_and_ragged_exchange_move_the_same_rows(counts, monkeypatch):
    """Covers sending, returning and both as transposes; rows of no expert are not sent."""
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", documented_ragged_all_to_all)
    M, room, D = 9, 6, 3
    rows = jnp.asarray(np.random.default_rng(0).standard_normal((4 * M, D)), jnp.float32)
    given = jnp.asarray(np.random.default_rng(1).standard_normal((16 * room, D)), jnp.float32)
    every = PartitionSpec("expert")

    def run(function, rows, sizes):
        mesh = mesh_of({"expert": 4})
        shard = jax.shard_map(function, mesh=mesh, in_specs=(every, every), out_specs=every)
        return np.asarray(jax.jit(shard)(rows, jnp.asarray(sizes).reshape(-1)))

    send, bring = (
        [getattr(expert_parallel, f"_{verb}_{kind}") for kind in ("padded", "ragged")]
        for verb in ("send", "bring")
    )
    sent = [run(partial(way, room=room), rows, counts) for way in send]
    np.testing.assert_array_equal(*sent)
    back = [run(partial(way, count=M), jnp.asarray(sent[0]), counts) for way in bring]
    np.testing.assert_array_equal(*back)
    brought = [run(partial(way, count=M), given, counts) for way in bring]
    np.testing.assert_array_equal(*brought)
    assert np.vdot(sent[0], given) == pytest.approx(np.vdot(rows, brought[0]), rel=1e-5)
    by_device = np.asarray(rows).reshape(4, M, D)
    for own, returned, sizes in zip(by_device, back[0].reshape(4, M, D), counts, strict=True):
        was_sent = np.arange(M) < sum(sizes)
        np.testing.assert_array_equal(returned, np.where(was_sent[:, None], own, 0))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_use_ragged_all_to_all(platform):
    moe = moe_of()
    graphdef, state = nnx.split(moe)
    with jax.set_mesh(mesh_of({"expert": 8})):
        gradient = jax.grad(lambda s, x: nnx.merge(graphdef, s)(x)[0].sum(), argnums=(0, 1))
        traced = jax.jit(gradient).trace(state, jnp.asarray(EVEN_BTD))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Rows, their weights and the gradients of the outputs are sent; the gradients of rows and
    # weights return. No gradient needs the outputs.
    assert text.count("@ragged_all_to_all") == 5
