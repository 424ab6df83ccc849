"""Omitted fields of a context have well-defined defaults."""

import chex
import jax
import numpy as np
from flax import nnx
from tiny import TINY, relative_l2

from jaxllm.config import LayerKind
from jaxllm.layers.block import Block
from jaxllm.layers.context import Context

X_BTD = np.random.default_rng(0).standard_normal((2, 5, TINY.embed_dim)).astype(np.float32)


def test_positions_default_to_counting_from_zero():
    chex.assert_trees_all_equal(
        np.asarray(Context().resolve_positions(4)), np.array([[0, 1, 2, 3]])
    )
    given = np.array([[3, 9]])
    assert Context(positions_BT=given).resolve_positions(2) is given


def test_default_context_equals_an_explicit_one():
    block = Block(TINY, LayerKind(), rngs=nnx.Rngs(0))
    whole = Context(np.ones((2, 5), np.int32), np.arange(5)[None])
    run = jax.jit(lambda x, context: block(x, context)[0])
    assert relative_l2(run(X_BTD, Context()), run(X_BTD, whole)) == 0
    shifted = Context(np.array([[1, 1, 2, 2, 2]] * 2), np.arange(5)[None])
    assert relative_l2(run(X_BTD, shifted), run(X_BTD, whole)) > 1e-3
