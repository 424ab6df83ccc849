"""Batches: every target once per epoch, exact resume, and the same rows on any process count."""

import itertools
import json

import chex
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.tokenization import ByteTokenizer
from jaxllm.train.data.batches import Batches, check_epochs
from jaxllm.train.data.documents import Corpus, DataConfig
from jaxllm.train.data.streams.windows import TokenStream


def corpus(train: int = 103, held_out: int = 45) -> Corpus:
    """A corpus in which every token is its position, counted from 1."""
    stream = np.arange(1, train + held_out + 1, dtype=np.uint16)
    parts = stream[:train], stream[train:]
    # Each a single document.
    return Corpus(*(TokenStream(part, np.array([0])) for part in parts), ByteTokenizer())


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
def test_an_epoch_contains_every_target_once(length, seq_len, batch_size, seed):
    assume(length > seq_len * batch_size)
    batches = batches_of(corpus(length), seq_len=seq_len, batch_size=batch_size, seed=seed)
    epoch = batches.examples_per_epoch
    # This number of steps ends both an epoch and a batch.
    seen = targets(take(batches.train(), epoch))
    assert sorted(seen) == sorted(list(range(2, length + 1)) * batch_size)


def test_epochs_and_seeds_have_different_orders():
    epoch = batches_of(corpus(), seq_len=2, batch_size=1).examples_per_epoch

    def order(seed: int, epochs: int) -> list[int]:
        batches = batches_of(corpus(), seq_len=2, batch_size=1, seed=seed)
        return [int(b["tokens"][0, 0]) for b in take(batches.train(), epochs * epoch)]

    first, second, third = np.reshape(order(0, 3), (3, epoch)).tolist()
    orders = [first, second, third, order(1, 1), sorted(first)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert all(sorted(a) == sorted(first) for a in orders)


@pytest.mark.parametrize("step", [0, 1, 7, 40, 10**9])
def test_the_batch_of_a_step_does_not_depend_on_where_iteration_started(step):
    batches = batches_of(corpus(), seq_len=4, batch_size=3)
    straight = take(batches.train(max(0, step - 5)), min(step, 5) + 3)[-3:]
    chex.assert_trees_all_equal(straight, take(batches.train(step), 3))


def test_iterator_state_resumes_after_a_json_round_trip():
    batches = batches_of(corpus(), seq_len=4, batch_size=3)
    first = batches.train()
    take(first, 11)
    state = json.loads(json.dumps(first.get_state()))
    second = batches.train()
    second.set_state(state)
    assert state == {"next_index": 11}
    chex.assert_trees_all_equal(take(first, 20), take(second, 20))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_partition_the_rows_of_a_single_process(world):
    def of(numbers: np.ndarray | None) -> Batches:
        return batches_of(corpus(), seq_len=3, batch_size=8, rows=numbers)

    own = np.split(np.array([0, 1, 6, 7, 2, 3, 4, 5]), world)
    shares = [of(numbers) for numbers in own]
    for alone, *parts in zip(
        take(of(None).train(), 30), *(s.train() for s in shares), strict=False
    ):
        chex.assert_shape([part["tokens"] for part in parts], (8 // world, 4))
        for numbers, part in zip(own, parts, strict=True):
            np.testing.assert_array_equal(part["tokens"], alone["tokens"][numbers])
    for alone, *parts in zip(of(None).held_out(9), *(s.held_out(9) for s in shares), strict=True):
        assert set.union(*map(rows, parts)) == rows(alone)
        assert {part["mask"].shape for part in parts} == {(8 // world, 3)}


def test_too_few_examples_are_reported_with_their_number():
    batches_of(corpus(18), seq_len=8, batch_size=3)
    with pytest.raises(ValueError, match="batch_size=3, but there are only 2 training examples"):
        batches_of(corpus(17), seq_len=8, batch_size=3)


@pytest.mark.parametrize(("steps", "most"), [(6, 1), (12, 2)])
def test_data_that_run_out_are_named(steps, most):
    examples = corpus(160 + 1).windows(8)  # 20 rows
    data = DataConfig(text=("mine.jsonl",), max_epochs=most)
    check_epochs(examples, steps, 3, DataConfig())
    check_epochs(examples, steps, 3, data)
    message = (
        rf"data\.text=\('mine\.jsonl',\) runs out: {steps + 2} steps take {3 * steps + 6} of "
        rf"its rows, but it has 20, and max_epochs={most} allows {20 * most}, which last for about "
    )
    with pytest.raises(UserError, match=message):
        check_epochs(examples, steps + 2, 3, data)
    with pytest.raises(UserError, match=r"data\.max_epochs=0 is not a positive number"):
        DataConfig(max_epochs=0)


@pytest.mark.parametrize("held_out", [2, 17, 45, 49])
def test_held_out_batches_contain_every_target_once_in_one_shape(held_out):
    batches = batches_of(corpus(held_out=held_out), seq_len=4, batch_size=3)
    found = list(batches.held_out(100))
    assert {b["tokens"].shape for b in found} == {(3, 5)}
    assert targets(found) == list(range(105, 104 + held_out))
    chex.assert_trees_all_equal(found, list(batches.held_out(100)))


def test_limited_held_out_batches_are_evenly_spaced():
    batches = batches_of(corpus(held_out=4 * 12 + 1), seq_len=4, batch_size=2)
    first, second = batches.held_out(2)
    starts = [*first["tokens"][:, 0], *second["tokens"][:, 0]]
    assert starts == [104 + 4 * window for window in (0, 3, 6, 9)]
    assert first["mask"].all()
    assert second["mask"].all()


def test_without_held_out_data_there_are_no_batches():
    batches = batches_of(corpus(held_out=0), seq_len=4, batch_size=2)
    assert list(batches.held_out(3)) == []


def test_the_fingerprint_depends_on_all_that_determines_the_batches():
    base = {"seq_len": 4, "batch_size": 2, "seed": 0}
    prints = [
        batches_of(data, **options).fingerprint()
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
    again = batches_of(corpus(), **base, rows=np.array([1])).fingerprint()
    assert json.loads(json.dumps(again)) == prints[0]
