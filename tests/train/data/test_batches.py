"""Batches: every target once an epoch, exact resume, the same rows for any number of processes."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxllm.train.data.batches import Batches
from jaxllm.train.data.documents import Corpus
from jaxllm.train.data.tokenizers import ByteTokenizer


def corpus(train: int = 103, held_out: int = 45) -> Corpus:
    """Tokens that say where they stand."""
    stream = np.arange(1, train + held_out + 1, dtype=np.uint16)
    return Corpus(stream[:train], stream[train:], ByteTokenizer())


def batches_of(corpus: Corpus, *, seq_len: int, **options: int) -> Batches:
    return Batches(corpus.windows(seq_len), **options)


def take(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iterator, count))


def rows(batch: dict[str, np.ndarray]) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.hstack([batch["tokens"], batch["mask"]]).tolist()}


def targets(batches) -> list[int]:
    return np.concatenate([b["tokens"][:, 1:][b["mask"]] for b in batches]).tolist()


@given(st.integers(20, 150), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_an_epoch_sees_every_target_once(length, seq_len, batch_size, seed):
    assume(length > seq_len * batch_size)
    batches = batches_of(corpus(length), seq_len=seq_len, batch_size=batch_size, seed=seed)
    epoch = batches.examples_per_epoch
    # As many steps as end both an epoch and a batch.
    seen = targets(take(batches.train(), epoch))
    assert sorted(seen) == sorted(list(range(2, length + 1)) * batch_size)


def test_epochs_and_seeds_differ_in_order():
    epoch = batches_of(corpus(), seq_len=2, batch_size=1).examples_per_epoch

    def order(seed: int, epochs: int) -> list[int]:
        batches = batches_of(corpus(), seq_len=2, batch_size=1, seed=seed)
        return [int(b["tokens"][0, 0]) for b in take(batches.train(), epochs * epoch)]

    first, second, third = np.reshape(order(0, 3), (3, epoch)).tolist()
    orders = [first, second, third, order(1, 1), sorted(first)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert all(sorted(a) == sorted(first) for a in orders)


@pytest.mark.parametrize("step", [0, 1, 7, 40, 10**9])
def test_the_batch_of_a_step_is_the_same_however_it_is_reached(step):
    batches = batches_of(corpus(), seq_len=4, batch_size=3)
    straight = take(batches.train(max(0, step - 5)), min(step, 5) + 3)[-3:]
    assert_equal(straight, take(batches.train(step), 3))


def test_resume_from_a_state_kept_as_json():
    batches = batches_of(corpus(), seq_len=4, batch_size=3)
    first = batches.train()
    take(first, 11)
    state = json.loads(json.dumps(first.get_state()))
    second = batches.train()
    second.set_state(state)
    assert state == {"next_index": 11}
    assert_equal(take(first, 20), take(second, 20))


def assert_equal(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        np.testing.assert_array_equal(a["mask"], b["mask"])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_rows_that_one_would_have(world):
    def of(rank: int, world: int) -> Batches:
        return batches_of(corpus(), seq_len=3, batch_size=8, rank=rank, world=world)

    shares = [of(rank, world) for rank in range(world)]
    for alone, *parts in zip(
        take(of(0, 1).train(), 30), *(s.train() for s in shares), strict=False
    ):
        assert all(part["tokens"].shape == (8 // world, 4) for part in parts)
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part["tokens"], alone["tokens"][rank::world])
    for alone, *parts in zip(of(0, 1).held_out(9), *(s.held_out(9) for s in shares), strict=True):
        assert set.union(*map(rows, parts)) == rows(alone)
        assert {part["mask"].shape for part in parts} == {(8 // world, 3)}


def test_shares_are_equal_or_refused():
    with pytest.raises(ValueError, match="batch_size=6 does not divide by 4 processes"):
        batches_of(corpus(), seq_len=3, batch_size=6, rank=0, world=4)


def test_too_little_text_says_how_much_there_is_and_how_much_is_needed():
    batches_of(corpus(18), seq_len=8, batch_size=3)
    with pytest.raises(ValueError, match="batch_size=3, but only 2 examples to train on"):
        batches_of(corpus(17), seq_len=8, batch_size=3)


@pytest.mark.parametrize("held_out", [2, 17, 45, 49])
def test_held_out_batches_hold_every_target_once_in_one_shape(held_out):
    batches = batches_of(corpus(held_out=held_out), seq_len=4, batch_size=3)
    there = list(batches.held_out(100))
    assert {b["tokens"].shape for b in there} == {(3, 5)}
    assert targets(there) == list(range(105, 104 + held_out))
    assert_equal(there, list(batches.held_out(100)))


def test_few_held_out_batches_are_spread_over_the_text():
    batches = batches_of(corpus(held_out=4 * 12 + 1), seq_len=4, batch_size=2)
    first, second = batches.held_out(2)
    starts = [*first["tokens"][:, 0], *second["tokens"][:, 0]]
    assert starts == [104 + 4 * window for window in (0, 3, 6, 9)]
    assert first["mask"].all()
    assert second["mask"].all()


def test_nothing_held_out_makes_no_batches():
    batches = batches_of(corpus(held_out=0), seq_len=4, batch_size=2)
    assert list(batches.held_out(3)) == []


def test_fingerprint_tells_all_that_decides_the_batches():
    base = {"seq_len": 4, "batch_size": 2, "seed": 0}
    prints = [
        batches_of(data, **options, rank=0, world=1).fingerprint()
        for data, options in [
            (corpus(), base),
            (corpus(), base | {"seq_len": 5}),
            (corpus(), base | {"batch_size": 4}),
            (corpus(), base | {"seed": 1}),
            (corpus(104, 44), base),
            (corpus(103, 44), base),
        ]
    ]
    assert all(a != b for a, b in itertools.combinations(prints, 2))
    again = batches_of(corpus(), **base, rank=1, world=2).fingerprint()
    assert json.loads(json.dumps(again)) == prints[0]
