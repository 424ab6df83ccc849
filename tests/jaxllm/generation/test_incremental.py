"""Prefill and token-by-token decoding equal a full forward pass."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_model, relative_l2

from jaxllm.generation.incremental import decode_step, prefill

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 7))
LENGTHS = np.array([7, 4])
ROOM = 3


@functools.cache
def model_and_start():
    model = random_model(scan_layers=False)
    return model, prefill(model, jnp.asarray(TOKENS), jnp.asarray(LENGTHS), ROOM)


logits_of = jax.jit(lambda model, tokens_BT: model(tokens_BT).logits)


def full_logits(model, tokens: np.ndarray) -> np.ndarray:
    """The logits after the last token. Later ones, which make all lengths equal, do not matter."""
    padded = np.pad(tokens, (0, TOKENS.shape[1] + ROOM - len(tokens)))
    return np.asarray(logits_of(model, padded[None])[0, len(tokens) - 1])


def test_each_row_continues_from_its_own_last_token():
    model, start = model_and_start()
    new_BR = np.random.default_rng(1).integers(0, 96, (2, ROOM))
    logits_BV, cache = start.model.unembed(start.x_BD[:, None])[:, 0], start.cache
    for i in range(ROOM):
        for row, length in enumerate(LENGTHS):
            text = np.concatenate([TOKENS[row, :length], new_BR[row, :i]])
            assert relative_l2(logits_BV[row], full_logits(model, text)) < 3e-6, (row, i)
        x_BD, cache = decode_step(start.model, cache, start.text(jnp.asarray(new_BR), i + 1))
        logits_BV = start.model.unembed(x_BD[:, None])[:, 0]


def test_repeated_rows_are_adjacent():
    _, start = model_and_start()
    repeated = start.repeat_rows(2)
    for row in range(2):
        for copy in (2 * row, 2 * row + 1):
            one, other = (
                jax.tree.map(lambda x, place=place: x[place], (part.x_BD, part.cache))
                for part, place in ((repeated, copy), (start, row))
            )
            chex.assert_trees_all_equal(one, other)
    assert jax.tree.leaves(repeated.cache)[0].shape[0] == 4


# A number of bfloat16 is off by 2**-9 of itself, one of int8 by 1/254 of the largest beside it.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 4 * 2**-9), ("int8", 2 / 254)]
)
def test_narrow_caches_change_logits_little(dtype, tolerance):
    """The error of a narrow cache, as a share of the logits; in float32 it is that of order."""
    model = random_model(scan_layers=False)
    tokens_BT, new_BR = jnp.asarray(TOKENS), np.random.default_rng(1).integers(0, 96, (2, ROOM))
    start = prefill(model, tokens_BT, jnp.asarray(LENGTHS), ROOM, dtype)
    x_BD, _ = decode_step(start.model, start.cache, start.text(jnp.asarray(new_BR), 1))
    logits_BV = start.model.unembed(x_BD[:, None])[:, 0]
    errors = [
        relative_l2(logits_BV[row], full_logits(model, [*TOKENS[row, :length], new_BR[row, 0]]))
        for row, length in enumerate(LENGTHS)
    ]
    assert max(errors) < tolerance, errors
