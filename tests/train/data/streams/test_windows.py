"""Windows over a stream: every target once, and documents that see only themselves."""

import chex
import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_model, relative_l2

from jaxllm.train.data.streams.windows import Windows
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss


@given(st.integers(2, 60), st.integers(1, 12))
def test_joined_windows_contain_every_target_once_with_its_predecessor(length, seq_len):
    tokens = np.arange(length, dtype=np.uint8) + 1
    count = -(-(length - 1) // seq_len)
    windows = Windows(tokens, seq_len)
    assert len(windows) == count
    batch = windows.take(range(count + 2))
    chex.assert_shape(batch["tokens"], (count + 2, seq_len + 1))
    assert batch["tokens"].dtype == np.int32
    seen = batch["tokens"][:, 1:][batch["mask"]]
    np.testing.assert_array_equal(seen, tokens[1:])
    np.testing.assert_array_equal(batch["tokens"][:, :-1][batch["mask"]], seen - 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 12))
def test_each_document_has_its_own_segment_and_positions(lengths, seq_len):
    """Compares with a loop over the tokens."""
    documents = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.arange(len(documents)) + 1
    starts = np.cumsum([0, *lengths])[:-1]
    windows = Windows(tokens, seq_len, starts)
    batch = windows.take(range(len(windows)))
    targets = []
    for row in range(len(windows)):
        begin, segment, position = row * seq_len, 0, 0
        for t in range(seq_len):
            place = begin + t
            if place >= len(tokens):
                assert batch["segment_ids"][row, t] == 0
                assert not batch["mask"][row, t]
                continue
            is_first = t == 0 or place in starts
            segment += is_first
            position = 0 if is_first else position + 1
            assert batch["segment_ids"][row, t] == segment
            assert batch["positions"][row, t] == position
            is_target = place + 1 < len(tokens) and documents[place + 1] == documents[place]
            assert batch["mask"][row, t] == is_target
            targets += [place + 1] * int(is_target)
    # Every token is a target once, but for the first of each document.
    assert targets == [place for place in range(len(tokens)) if place not in starts]


def test_a_row_of_packed_documents_has_the_loss_of_each_document_alone():
    """Learned positions and RoPE: both restart, and no document sees another."""
    rng = np.random.default_rng(0)
    lengths = (7, 3, 12)
    documents = [rng.integers(1, 96, length) for length in lengths]
    starts = np.cumsum([0, *lengths])[:-1]
    joined = np.concatenate(documents)
    for kind in ("learned", "rope"):
        model = random_model({"positions.kind": kind}, num_layers=2, max_len=24)

        @jax.jit
        def loss(batch, model=model):
            return next_token_loss(model, batch, LossConfig(chunk_tokens=8))[0]

        packed = loss(Windows(joined, 24, starts).take([0]))
        alone = sum(loss(Windows(text, 24, np.array([0])).take([0])) for text in documents)
        assert relative_l2(packed, alone) < 1e-5
        assert relative_l2(loss(Windows(joined, 24).take([0])), alone) > 1e-2
