"""Sequences of vectors are continued from a cache as by a full forward pass for each vector."""

import dataclasses

import jax
import numpy as np
import pytest
from kinds import CONFIGS, WAVES
from tiny import random_model, random_of, relative_l2

from jaxllm.config import AttentionConfig, LayerKind, PositionConfig, with_fields
from jaxllm.errors import NonFiniteError, UserError
from jaxllm.generation import generate, generate_vectors
from jaxllm.params import named_parameters, with_arrays

RNG = np.random.default_rng(0)
NEW, TOLERANCE = 9, 1e-5
WINDOWS = with_fields(
    WAVES,
    {"attention.window": 4},
    pattern=(LayerKind(attention="window"), LayerKind()),
)


def rows_of(dim: int, lengths=(5, 1, 17)) -> list[np.ndarray]:
    return [RNG.standard_normal((length, dim)).astype(np.float32) for length in lengths]


def by_hand(forward, row: np.ndarray) -> np.ndarray:
    """One full forward pass per vector."""
    start = len(row)
    for _ in range(NEW):
        # Padding on the right cannot change what comes before it.
        padded = np.zeros((1, 32, row.shape[1]), np.float32)
        padded[0, : len(row)] = row
        row = np.concatenate([row, np.asarray(forward(padded))[:, len(row) - 1]])
    return row[start:]


@pytest.mark.parametrize(
    "config", [WAVES, pytest.param(WINDOWS, marks=pytest.mark.exhaustive)], ids=["full", "window"]
)
def test_vectors_are_those_of_a_full_forward_pass_each(config):
    model, rows = random_of(config), rows_of(2)
    forward = jax.jit(lambda x: model(x).logits)
    found = generate_vectors(model, rows, NEW)
    for row, new in zip(rows, found, strict=True):
        assert new.shape == (NEW, 2)
        assert relative_l2(new, by_hand(forward, row)) < TOLERANCE
    [alone] = generate_vectors(model, rows[:1], NEW)
    assert relative_l2(alone, found[0]) < TOLERANCE
    narrow = generate_vectors(model, rows, NEW, cache_dtype="bfloat16")
    assert 0 < relative_l2(narrow[0], found[0]) < 0.05


def test_targets_see_their_ragged_sources():
    model = random_of(CONFIGS["vectors given vectors"])
    rows, sources = rows_of(5), rows_of(3, (7, 20, 2))
    found = generate_vectors(model, rows, NEW, sources=sources)
    forward = jax.jit(lambda source, x: model(source, x).logits)
    for row, source, new in zip(rows, sources, found, strict=True):
        expected = by_hand(lambda x, source=source: forward(source[None], x), row)
        assert relative_l2(new, expected) < TOLERANCE


def test_vectors_end_with_the_positions():
    model = random_of(
        dataclasses.replace(WAVES, positions=PositionConfig(kind="learned"), max_len=20)
    )
    rows = rows_of(2, (5, 12))
    forward = jax.jit(lambda x: model(x[:, :20]).logits)
    found = generate_vectors(model, rows, NEW)
    for row, new in zip(rows, found, strict=True):
        assert relative_l2(new, by_hand(forward, row)) < TOLERANCE
    with pytest.raises(UserError, match="21 vectors exceed max_len=20"):
        generate_vectors(model, rows, NEW + 1)


def test_what_cannot_be_continued_is_refused():
    waves, pair = random_of(WAVES), random_of(CONFIGS["vectors given vectors"])
    both = random_of(dataclasses.replace(WAVES, attention=AttentionConfig(causal=False)))
    for model, inputs, options, message in (
        (random_model(num_layers=1), rows_of(2), {}, "a Decoder has tokens: use `generate`"),
        (random_of(CONFIGS["each vector"]), rows_of(3), {}, "output_dim=5 is not input_dim=3"),
        (both, rows_of(2), {}, r"attention\.causal=False: only a causal model"),
        (waves, rows_of(2), {"sources": rows_of(2)}, "a SequenceModel reads no `sources`"),
        (pair, rows_of(5), {}, "a SequenceToSequence needs `sources`"),
        (pair, rows_of(5), {"sources": rows_of(3, (2,))}, "sources has 1 entries for 3 rows"),
        (waves, rows_of(3), {}, r"inputs 0 has shape \(5, 3\); it must be \(T, 2\)"),
        (waves, [], {}, "no inputs are given"),
    ):
        with pytest.raises(UserError, match=message):
            generate_vectors(model, inputs, NEW, **options)
    with pytest.raises(UserError, match="num_new=0 is less than 1"):
        generate_vectors(waves, rows_of(2), 0)
    with pytest.raises(UserError, match="`generate_vectors` continues sequences of vectors"):
        generate(waves, [[1]], 2)
    arrays = {name: v.get_value() * np.nan for name, v in named_parameters(waves).items()}
    with pytest.raises(NonFiniteError, match="an output is NaN"):
        generate_vectors(with_arrays(waves, arrays), rows_of(2), 2)
