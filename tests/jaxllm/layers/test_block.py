"""A stack of blocks computes the same whether stacked, scanned, unstacked or rematerialized."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from mesh_gradients import on_devices, on_one, random_batch, worst_error
from tiny import TINY, random_model, relative_l2

from jaxllm.config import (
    AttentionConfig,
    ExpertsConfig,
    LayerKind,
    MlpConfig,
    NumericsConfig,
    with_fields,
)
from jaxllm.layers.attention.cache import KVCache
from jaxllm.layers.context import Context
from jaxllm.layers.stack import apply_layers, restack
from jaxllm.train import make_mesh

TOLERANCE = 2e-6  # relative L2, float32
B, T = 2, 9
X_BTD = np.random.default_rng(5).standard_normal((B, T, TINY.embed_dim)).astype(np.float32)
SEGMENTS = jnp.asarray([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2])


@pytest.fixture(scope="module")
def stacked():
    return random_model(
        attention=AttentionConfig(qkv_bias=True, out_bias=True), mlp=MlpConfig(bias=True)
    ).layers


@pytest.fixture(scope="module")
def listed(stacked):
    return unstacked(stacked)


def apply(layers, x_BTD, segment_ids=None, caches=None, remat="none"):
    positions_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])

    def step(block, x, cache):
        return block(x, Context(segment_ids, positions_BT), cache)

    return apply_layers(layers, step, x_BTD, caches, remat, "float32")[:2]


@functools.partial(jax.jit, static_argnames="remat")
def value_and_gradients(layers, x_BTD, remat):
    """Returns the dot product of the output with a fixed array, and its gradients."""
    graphdef, state = nnx.split(layers)
    weight = jnp.sin(jnp.arange(x_BTD.size, dtype=jnp.float32)).reshape(x_BTD.shape)

    def loss(state, x):
        out, _ = apply(nnx.merge(graphdef, state), x, SEGMENTS, remat=remat)
        return jnp.vdot(out, weight)

    return jax.value_and_grad(loss, argnums=(0, 1))(state, x_BTD)


def unstacked(layers):
    return restack(layers, TINY.kinds, False)


def stacked_again(layers):
    return restack(layers, TINY.kinds, True)


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def bits(tree) -> list[bytes]:
    return [leaf.tobytes() for leaf in leaves(tree)]


def test_block_adds_attention_then_mlp(listed):
    block = listed["1"]
    context = Context(SEGMENTS)

    @jax.jit
    def by_hand(block, x_BTD):
        attended, _ = block.attn(block.attn_norm(x_BTD), context)
        middle = x_BTD + attended
        return middle + block.mlp(block.mlp_norm(middle))

    out, cache, load = jax.jit(lambda block, x: block(x, context))(block, X_BTD)
    assert cache is None
    assert load is None
    assert relative_l2(out, by_hand(block, X_BTD)) < TOLERANCE


def test_stacking_inverts_unstacking(stacked, listed):
    assert len(listed) == TINY.num_layers
    again = stacked_again(listed)
    assert jax.tree.structure(again) == jax.tree.structure(stacked)
    assert bits(again) == bits(stacked)
    assert [bits(block) for block in unstacked(again)] == [bits(block) for block in listed]
    firsts = [bits(block)[0] for block in listed]
    assert len(set(firsts)) == TINY.num_layers


def test_stacking_keeps_letters_and_dtypes():
    model = random_model(numerics=NumericsConfig(param_dtype="bfloat16"))
    listed = unstacked(model.layers)
    for state in (nnx.state(listed["0"]), nnx.state(stacked_again(listed))):
        for _, variable in nnx.to_flat_state(state):
            assert variable.get_value().dtype == jnp.bfloat16
            assert variable.dims


def test_scanned_layers_equal_unstacked_layers(stacked, listed):
    scanned = value_and_gradients(stacked, X_BTD, "none")
    one_by_one = value_and_gradients(listed, X_BTD, "none")
    assert float(scanned[0]) == pytest.approx(float(one_by_one[0]), rel=1e-5)
    assert relative_l2(scanned[1][1], one_by_one[1][1]) < TOLERANCE
    restacked = stacked_again(nnx.merge(nnx.graphdef(listed), one_by_one[1][0]))
    for ours, theirs in zip(leaves(scanned[1][0]), leaves(nnx.state(restacked)), strict=True):
        assert relative_l2(ours, theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("form", "remat"), [("stacked", "dots"), ("stacked", "full"), ("listed", "full")]
)
def test_remat_changes_no_value_and_no_gradient(form, remat, request):
    layers = request.getfixturevalue(form)
    plain = leaves(value_and_gradients(layers, X_BTD, "none"))
    recomputed = leaves(value_and_gradients(layers, X_BTD, remat))
    for ours, theirs in zip(recomputed, plain, strict=True):
        assert relative_l2(ours, theirs) < TOLERANCE


def test_remat_saves_memory(stacked):
    """Less is stored from "none" to "dots" to "full"."""

    def kept(remat: str) -> int:
        graphdef, state = nnx.split(stacked)

        def pullback(state):
            return jax.vjp(lambda s: apply(nnx.merge(graphdef, s), X_BTD, remat=remat)[0], state)[1]

        kept = jax.tree.leaves(jax.eval_shape(pullback, state))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    assert kept("full") < kept("dots") < kept("none")


def test_caches_are_stacked_like_the_blocks(stacked, listed):
    empty = KVCache.empty(TINY, B, T + 2)
    many = {"0:3": KVCache(*(jnp.stack([x] * TINY.num_layers) for x in empty))}
    scanned, stacked_caches = jax.jit(apply)(stacked, X_BTD, None, many)
    one_by_one, listed_caches = jax.jit(apply)(
        listed, X_BTD, None, {str(i): empty for i in range(3)}
    )
    assert relative_l2(scanned, one_by_one) < TOLERANCE
    assert relative_l2(scanned, jax.jit(apply)(stacked, X_BTD)[0]) < TOLERANCE
    assert list(stacked_caches) == ["0:3"]
    assert list(listed_caches) == ["0", "1", "2"]
    for i, cache in enumerate(listed_caches.values()):
        for ours, theirs in zip(cache, stacked_caches["0:3"], strict=True):
            assert relative_l2(ours[:, :T], theirs[i, :, :T]) < TOLERANCE
            assert (ours[:, T:] == 0).all()


def test_low_precision_keeps_its_dtype_through_the_stack():
    model = random_model(numerics=NumericsConfig(dtype="bfloat16"))
    low, _ = jax.jit(apply)(model.layers, jnp.asarray(X_BTD, jnp.bfloat16))
    exact, _ = jax.jit(apply)(random_model().layers, X_BTD)
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low, exact) < 5e-2


def test_block_depends_only_on_its_config(listed):
    assert (
        with_fields(
            TINY, {"attention.qkv_bias": True, "attention.out_bias": True, "mlp.bias": True}
        )
        == listed["0"].attn.config
    )


@pytest.mark.parametrize("placement", ["pre", "parallel", "parallel_shared"])
def test_outputs_of_sublayers_are_scaled_and_added_as_the_placement_says(placement):
    changes = {"norms.placement": placement, "residual_scale": 0.3, "num_layers": 1}
    block = random_model({**changes, "scan_layers": False}).layers["0"]
    assert (block.mlp_norm is None) is (placement == "parallel_shared")
    found, _, _ = block(X_BTD, Context())
    attended, _ = block.attn(block.attn_norm(X_BTD), Context())
    after = X_BTD + 0.3 * attended
    own = block.attn_norm if block.mlp_norm is None else block.mlp_norm
    given = after if placement == "pre" else X_BTD
    assert relative_l2(found, after + 0.3 * block.mlp(own(given))) < TOLERANCE


SPLIT = {"norms.sequence_parallel": True}
EXPERTS = {
    "experts": ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24),
    "pattern": (LayerKind(mlp="experts"), LayerKind()),
}


@pytest.mark.cases(3, exhaustive=9)
@pytest.mark.parametrize(
    "axes",
    [{"fsdp": 4, "tensor": 2}, {"data": 4, "tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2}],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norms.placement": "post", "norms.kind": "layer", "norms.embed": True},
        {"norms.placement": "parallel"},
        {"norms.placement": "sandwich", "mlp.gated": False, "remat": "full"},
        {"num_kv_heads": 1, "remat": "dots"},
        EXPERTS,
    ],
)
def test_sequence_parallelism_computes_the_same(changes, axes):
    """Loss and every gradient, to the rounding of float32."""
    model, batch = random_model(SPLIT | changes), random_batch(8, 16)
    plain = random_model({"norms.sequence_parallel": False} | changes)
    found, _ = on_devices(model, batch, make_mesh(**axes))
    assert worst_error(found, on_one(plain, batch)) < 1e-5


def test_sequence_parallelism_splits_what_layers_keep():
    """A device keeps half of each layer's input, and sums none of the residual stream whole."""
    batch, mesh, found = random_batch(8, 16), make_mesh(fsdp=4, tensor=2), {}
    for is_split in (False, True):
        model = random_model({"norms.sequence_parallel": is_split}, remat="full", num_layers=5)
        found[is_split] = on_devices(model, batch, mesh)[1].as_text()
    whole, half = "f32[5,2,16,32]", "f32[5,2,8,32]"
    assert (whole in found[False], half in found[False]) == (True, False)
    assert (whole in found[True], half in found[True]) == (False, True)


def test_a_length_that_is_not_divisible_stays_whole():
    model, batch = random_model(SPLIT), random_batch(8, 13)
    found, _ = on_devices(model, batch, make_mesh(fsdp=4, tensor=2))
    assert worst_error(found, on_one(model, batch)) < 1e-5
