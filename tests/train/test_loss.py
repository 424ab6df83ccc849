"""Next-token loss: equal to PyTorch's with any chunking and masking, and so are its gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiers import examples
from tiny import TINY, random_model, relative_l2

from jaxllm.config import HeadConfig
from jaxllm.params import split
from jaxllm.train.loss import cross_entropy
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
    return next_token_loss(model, {"tokens": tokens, "mask": mask_BT}, chunk)[0]


@functools.partial(jax.jit, static_argnums=(1, 4))
def value_and_gradient(params, bind, tokens, mask_BT, chunk):
    batch = {"tokens": tokens, "mask": mask_BT}
    return jax.value_and_grad(lambda p: next_token_loss(bind(p), batch, chunk)[0])(params)


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
    logits = jnp.array([[[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]]])
    targets = jnp.array([[0, 1]])
    np.testing.assert_array_equal(cross_entropy(logits, targets), [[0, 0]])
    np.testing.assert_allclose(cross_entropy(logits, 1 - targets), [[2e4, 2e30]], rtol=1e-6)
    gradient = jax.grad(lambda logits: cross_entropy(logits, targets).sum())(logits)
    chex.assert_tree_all_finite(gradient)


def test_a_uniform_prediction_has_loss_log_vocab_size():
    model = random_model()
    model.lm_head.kernel.set_value(jnp.zeros_like(model.lm_head.kernel[...]))
    tokens = np.zeros((2, 6), np.int32)
    loss = loss_of(model, tokens, np.ones((2, 5), bool), 512)
    assert float(loss) == pytest.approx(10 * np.log(TINY.vocab_size), rel=1e-6)


def test_chunking_saves_the_memory_of_the_logits():
    """With 128 tokens and a vocabulary of 8192, all logits take 4 MiB and a chunk's 0.25 MiB."""
    model = random_model(vocab_size=8192, num_layers=1)
    graphdef, state = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((1, 129), jnp.int32)
    mask_BT = jax.ShapeDtypeStruct((1, 128), bool)

    def temporary_bytes(chunk: int) -> int:
        def loss(state, tokens, mask_BT):
            batch = {"tokens": tokens, "mask": mask_BT}
            return next_token_loss(nnx.merge(graphdef, state), batch, chunk)[0]

        compiled = jax.jit(jax.grad(loss)).lower(state, tokens, mask_BT).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(128) - temporary_bytes(8) > 4 * 2**20
