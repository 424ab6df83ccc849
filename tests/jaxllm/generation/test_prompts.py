"""Prompts are padded to few sizes."""

import pytest

from jaxllm.generation.prompts import batch_size, bucket_size, pad_prompts


def test_prompts_are_padded_on_the_right():
    tokens, lengths = pad_prompts([[1, 2, 3], [4]])
    assert tokens.shape == (2, 16)
    assert tokens[:, :4].tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert lengths.tolist() == [3, 1]


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 24)])
def test_batches_have_few_sizes(rows, size):
    assert batch_size(rows) == size


@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (16, 16), (17, 32), (1000, 1024)])
def test_lengths_are_powers_of_two(tokens, size):
    assert bucket_size(tokens) == size
