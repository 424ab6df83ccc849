"""Next-token loss: equal to PyTorch's with any chunking and masking, and so are its gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from collectives import collectives
from flax import nnx
from tiers import examples
from tiny import TINY, random_model, relative_l2

from jaxllm.config import HeadConfig
from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.train import make_mesh
from jaxllm.train.data.placement import on_mesh
from jaxllm.train.loss import LossConfig, token_losses
from jaxllm.train.objective import next_token_loss

TOLERANCE = 1e-5  # relative, float32
B, T = 3, 13


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, TINY.vocab_size, (B, T + 1)), rng.random((B, T)) < 0.6


@functools.partial(jax.jit, static_argnums=3)
def loss_of(model, tokens, mask_BT, chunk):
    return next_token_loss(
        model, {"tokens": tokens, "mask": mask_BT}, LossConfig(chunk_tokens=chunk)
    )[0]


@functools.partial(jax.jit, static_argnums=(1, 4))
def value_and_gradient(params, bind, tokens, mask_BT, chunk):
    batch = {"tokens": tokens, "mask": mask_BT}
    return jax.value_and_grad(
        lambda p: next_token_loss(bind(p), batch, LossConfig(chunk_tokens=chunk))[0]
    )(params)


def test_loss_is_the_masked_sum_of_torch_cross_entropy(model, batch):
    tokens, mask_BT = batch
    logits = torch.tensor(np.asarray(model(tokens[:, :-1]).logits))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten(), reduction="none"
    )
    expected = (expected.view(B, T) * torch.tensor(mask_BT)).sum()
    assert float(loss_of(model, tokens, mask_BT, 512)) == pytest.approx(
        float(expected), rel=TOLERANCE
    )


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("chunk", "tied"), examples([(1, False), (4, False), (4, True), (12, False)], (4, True))
)
def test_chunking_changes_neither_loss_nor_gradient(chunk, tied, batch):
    """With chunks of one token, and with a partly filled last chunk."""
    bind, params = split(random_model(head=HeadConfig(tied=tied), num_layers=1))
    expected_loss, expected_gradient = value_and_gradient(params, bind, *batch, T)
    loss, gradient = value_and_gradient(params, bind, *batch, chunk)
    assert float(loss) == pytest.approx(float(expected_loss), rel=TOLERANCE)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, expected_gradient)
    for ours, theirs in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        assert relative_l2(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("chunk", [4, 512])
def test_masked_targets_do_not_count(model, batch, chunk):
    """The last token of a row is only a target, so it has no effect if it is masked out."""
    tokens, mask_BT = batch[0], batch[1].copy()
    mask_BT[:, -1] = False
    changed = tokens.copy()
    changed[:, -1] = (changed[:, -1] + 1) % TINY.vocab_size
    before, after = (float(loss_of(model, t, mask_BT, chunk)) for t in (tokens, changed))
    assert before == after
    mask_BT[:, -1] = True
    assert float(loss_of(model, changed, mask_BT, chunk)) != before
    assert float(loss_of(model, tokens, np.zeros_like(mask_BT), chunk)) == 0


def test_losses_over_disjoint_masks_add_up(model, batch):
    tokens, mask_BT = batch
    parts = [loss_of(model, tokens, mask_BT & (np.arange(T) % 3 == i), 4) for i in range(3)]
    assert float(sum(parts)) == pytest.approx(float(loss_of(model, tokens, mask_BT, 4)), rel=1e-5)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]])
    targets = jnp.array([0, 1])
    losses, gradient = token_losses(logits, targets, 0.0, ())
    np.testing.assert_array_equal(losses, [0, 0])
    chex.assert_tree_all_finite(gradient)
    losses, gradient = token_losses(logits, 1 - targets, 0.0, ())
    np.testing.assert_allclose(losses, [2e4, 2e30], rtol=1e-6)
    chex.assert_tree_all_finite(gradient)


def test_a_uniform_prediction_has_loss_log_vocab_size():
    model = random_model()
    model.lm_head.kernel.set_value(jnp.zeros_like(model.lm_head.kernel[...]))
    tokens = np.zeros((2, 6), np.int32)
    loss = loss_of(model, tokens, np.ones((2, 5), bool), 512)
    assert float(loss) == pytest.approx(10 * np.log(TINY.vocab_size), rel=1e-6)


def test_chunking_saves_the_memory_of_the_logits():
    """With 512 tokens and a vocabulary of 8192, all logits take 16 MiB and a chunk's 0.25 MiB."""
    model = random_model(vocab_size=8192, num_layers=1, max_len=1024)
    graphdef, state = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((1, 513), jnp.int32)
    mask_BT = jax.ShapeDtypeStruct((1, 512), bool)

    def temporary_bytes(chunk: int) -> int:
        def loss(state, tokens, mask_BT):
            batch = {"tokens": tokens, "mask": mask_BT}
            return next_token_loss(
                nnx.merge(graphdef, state), batch, LossConfig(chunk_tokens=chunk)
            )[0]

        compiled = jax.jit(jax.grad(loss)).lower(state, tokens, mask_BT).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(512) - temporary_bytes(8) > 14 * 2**20


HEADS = {
    "own": {},
    "tied": {"head": HeadConfig(tied=True)},
    "capped": {"head": HeadConfig(softcap=2.0, scale=0.5, bias=True)},
}
MESHES = {
    "fsdp x tensor": {"fsdp": 4, "tensor": 2},
    "data x fsdp x expert": {"data": 2, "fsdp": 2, "expert": 2},
    "fsdp x sequence": {"fsdp": 4, "sequence": 2},
}


def by_hand(params, bind, tokens, mask_BT, z_loss):
    """The loss of all logits at once, whose gradient JAX derives."""
    logits_BTV = bind(params)(tokens[:, :-1]).logits
    nll_BT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens[:, 1:, None], 2)[..., 0]
    z_BT = z_loss * jax.nn.logsumexp(logits_BTV, -1) ** 2
    return jnp.sum((nll_BT + z_BT) * mask_BT)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("head", "mesh", "shape", "z_loss"),
    [
        ("own", "fsdp x tensor", (8, T), 0.0),
        ("tied", "data x fsdp x expert", (4, T), 0.1),  # too few rows for all devices
        ("capped", "fsdp x tensor", (8, T), 0.1),
        ("own", "fsdp x sequence", (8, 12), 0.0),
        ("tied", "fsdp x sequence", (8, 13), 0.1),  # `sequence` splits D but not the tokens
    ],
)
def test_on_a_mesh_loss_and_gradients_are_those_of_all_logits_at_once(head, mesh, shape, z_loss):
    model = random_model(num_layers=1, **HEADS[head])
    bind, params = split(model)
    rng = np.random.default_rng(0)
    rows, length = shape
    tokens = rng.integers(0, TINY.vocab_size, (rows, length + 1))
    mask_BT = rng.random(shape) < 0.6
    expected = jax.jit(jax.value_and_grad(by_hand), static_argnums=1)
    expected = expected(params, bind, tokens, mask_BT, z_loss)
    mesh = make_mesh(**MESHES[mesh])

    def loss(params, batch):
        return next_token_loss(bind(params), batch, LossConfig(chunk_tokens=5, z_loss=z_loss))[0]

    with jax.set_mesh(mesh):
        places = map_parameters(model, lambda name, _: parameter_shardings(model, mesh)[name])
        batch = on_mesh({"tokens": tokens, "mask": mask_BT}, mesh, rows)
        found = jax.jit(jax.value_and_grad(loss))(jax.device_put(params, places), batch)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=TOLERANCE)
    for ours, theirs in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
        assert relative_l2(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_gathered_once_and_its_gradient_reduced_once(tied):
    """With one layer of few parameters, whatever the number of chunks."""
    V, D, rows = 768, 96, 8
    model = random_model(num_layers=1, vocab_size=V, embed_dim=D, head=HeadConfig(tied=tied))
    bind, params = split(model)
    mesh = make_mesh(fsdp=8)

    def loss(params, batch):
        return next_token_loss(bind(params), batch, LossConfig(chunk_tokens=4))[0]

    with jax.set_mesh(mesh):
        places = map_parameters(model, lambda name, _: parameter_shardings(model, mesh)[name])
        params = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params, places
        )
        batch = {"tokens": np.zeros((rows, 33), np.int32), "mask": np.ones((rows, 32), bool)}
        compiled = jax.jit(jax.grad(loss)).lower(params, on_mesh(batch, mesh, rows)).compile()
    kernel = sorted([V, D])
    whole = [one for one in collectives(compiled) if sorted(one.shapes[-1]) == kernel]
    part = [one for one in collectives(compiled) if sorted(one.shapes[-1]) == sorted([V, D // 8])]
    gathers = sum(one.runs for one in whole if one.kind == "all-gather")
    reductions = sum(one.runs for one in part if one.kind == "reduce-scatter")
    assert gathers == 1
    assert reductions == 1
    assert not any(one.kind == "all-reduce" for one in whole)
