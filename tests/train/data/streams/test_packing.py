"""Packing: best fit as by definition, every target once, and the loss of each document alone."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import examples
from tiny import random_model, relative_l2

from jaxllm.params import split
from jaxllm.train.data.streams.packing import best_fit, pack
from jaxllm.train.data.streams.windows import TokenStream
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss


def rooms_by_definition(lengths: list[int], capacity: int) -> list[int]:
    """The room that is left in each row by best fit, the longest first, one piece at a time."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        rooms[min(fitting, key=rooms.__getitem__)] -= length
    return sorted(rooms)


@given(st.data(), st.integers(1, 25))
def test_pieces_go_where_the_least_room_is_left(data, capacity):
    lengths = np.array(data.draw(st.lists(st.integers(1, capacity), max_size=60)), np.int64)
    order, first = best_fit(lengths, capacity)
    assert sorted(order) == list(range(len(lengths)))
    held = [lengths[order[a:b]].sum() for a, b in itertools.pairwise(first)]
    assert sorted(capacity - np.array(held, int)) == rooms_by_definition([*lengths], capacity)


def stream_of(lengths, *, with_targets: bool = False) -> TokenStream:
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint16)
    is_target = tokens % 3 > 0 if with_targets else None
    return TokenStream(tokens, np.cumsum([0, *lengths])[:-1], is_target)


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 12), st.booleans())
def test_every_token_is_a_target_once_but_for_the_first_of_each_document(lengths, T, some):
    stream = stream_of(lengths, with_targets=some)
    firsts = {1 + start for start in stream.starts}
    expected = [t for t in stream.tokens if t not in firsts and (not some or t % 3)]
    for how in ("best_fit", "padded"):
        packed = pack(stream, T, how)
        batch = packed.take(range(len(packed)))
        targets, inputs = (batch["tokens"][:, part] for part in (slice(1, None), slice(-1)))
        assert sorted(targets[batch["mask"]]) == expected
        np.testing.assert_array_equal(inputs[batch["mask"]] + 1, targets[batch["mask"]])
        starts = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
        assert starts.sum() == len(packed.pieces.starts)
        if how == "padded":
            assert batch["segment_ids"].max(initial=0) <= 1


def test_documents_that_fit_are_whole_and_rows_are_full():
    drawn = np.random.default_rng(0).lognormal(2.5, 0.8, 400)
    lengths = np.clip(drawn.astype(int), 2, 60)
    packed = pack(stream_of(lengths), 64, "best_fit")
    assert sorted(packed.pieces.lengths) == sorted(lengths)
    assert packed.num_tokens == sum(lengths)
    assert packed.num_tokens / (len(packed) * 65) > 0.98
    again = pack(stream_of(lengths), 64, "best_fit")
    np.testing.assert_array_equal(packed.rows.order, again.rows.order)


@pytest.mark.parametrize("how", examples(["best_fit", "padded"], "best_fit"))
@pytest.mark.parametrize("kind", ["rope", pytest.param("learned", marks=pytest.mark.exhaustive)])
def test_packed_documents_have_the_loss_and_the_gradients_of_each_alone(how, kind):
    rng = np.random.default_rng(0)
    lengths = [7, 3, 12, 25, 9, 2, 16, 31]
    tokens = rng.integers(1, 96, sum(lengths))
    is_target = rng.random(sum(lengths)) < 0.7
    starts = np.cumsum([0, *lengths])[:-1]
    bind, params = split(random_model({"positions.kind": kind}, num_layers=2, max_len=32))

    @jax.jit
    def loss_and_gradients(batch):
        def loss(params):
            return next_token_loss(bind(params), batch, LossConfig(chunk_tokens=16))[0]

        return jax.value_and_grad(loss)(params)

    packed = pack(TokenStream(tokens, starts, is_target), 32, how)
    assert len(packed) == (4 if how == "best_fit" else 8)
    together = [loss_and_gradients(packed.take([row])) for row in range(len(packed))]
    alone = []
    for start, length in zip(starts, lengths, strict=True):
        row = {"tokens": np.zeros((1, 33), np.int32), "mask": np.zeros((1, 32), bool)}
        row["tokens"][0, :length] = tokens[start : start + length]
        row["mask"][0, : length - 1] = is_target[start + 1 : start + length]
        alone.append(loss_and_gradients(row))
    total = lambda parts: jax.tree.map(lambda *x: np.sum(x, axis=0), *parts)  # noqa: E731
    (loss, grads), (expected, expected_grads) = total(together), total(alone)
    assert relative_l2(loss, expected) < 1e-5
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        assert relative_l2(one, other) < 1e-5
