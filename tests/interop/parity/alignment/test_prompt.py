"""Tokens and vectors: random, from text, from files."""

import json

import chex
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxllm.interop import CheckpointError
from jaxllm.interop.parity.alignment.prompt import (
    english_tokens,
    random_tokens,
    random_vectors,
    read_arrays,
    text_ids,
    tokenizer_of,
    windows,
)


def test_text_without_tokenizer_is_bytes(tmp_path):
    assert text_ids("aé", tmp_path, 256).tolist() == [97, 195, 169]
    with pytest.raises(CheckpointError, match="vocabulary of 255 tokens is not that"):
        text_ids("a", tmp_path, 255)
    with pytest.raises(ValueError, match="no tokens"):
        text_ids("", tmp_path, 256)


def test_random_tokens_include_rare_frequent_and_repeated_ones():
    tokens_BT = random_tokens(50_000, 2, 400, seed=1)
    chex.assert_shape(tokens_BT, (2, 400))
    assert tokens_BT.min() == 0
    assert tokens_BT.max() == 49_999
    np.testing.assert_array_equal(tokens_BT[:, 303:], tokens_BT[:, 3:100])
    _, counts = np.unique(tokens_BT, return_counts=True)
    assert (counts == 1).sum() > 100
    assert counts.max() > 10
    assert not np.array_equal(tokens_BT, random_tokens(50_000, 2, 400, seed=2))


def test_random_vectors_are_float32_and_follow_the_seed():
    vectors = random_vectors((2, 3, 4), seed=1)
    chex.assert_type(vectors, np.float32)
    chex.assert_shape(vectors, (2, 3, 4))
    np.testing.assert_array_equal(vectors, random_vectors((2, 3, 4), seed=1))
    assert not np.array_equal(vectors, random_vectors((2, 3, 4), seed=2))


def test_shorter_rows_in_a_file_are_padded(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([[5, 6, 7], [8]]))
    found = read_arrays(file)
    assert found["target"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert found["target_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    file.write_text(json.dumps([[5, 6], [8, 9]]))
    assert read_arrays(file).keys() == {"target"}
    file.write_text("[[true]]")
    with pytest.raises(ValueError, match="target is not a list of lists of integers"):
        read_arrays(file)


@pytest.fixture
def words(tmp_path):
    """A tokenizer of words, with two special tokens."""
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "a": 1, "of": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_english_text_has_rare_repeated_and_special_tokens(words):
    tokens_BT = english_tokens(tokenizer_of(words), 50_000, 2, 360, seed=0)
    chex.assert_shape(tokens_BT, (2, 360))
    assert set(tokens_BT[0]) == {0, 1, 2, 3}, "the first row is text alone"
    row = tokens_BT[1]
    assert {4, 5} <= set(row)
    assert len(set(row[120:180])) > 40, "rare tokens"
    assert np.unique(row[180:210], return_counts=True)[1].max() > 20, "one token many times"
    again = english_tokens(tokenizer_of(words), 50_000, 2, 360, seed=0)
    np.testing.assert_array_equal(again, tokens_BT)
    assert not np.array_equal(tokens_BT, english_tokens(tokenizer_of(words), 50_000, 2, 360, 1))


def test_windows_follow_each_other_and_a_short_text_repeats():
    assert [windows(np.arange(9), 4, n).tolist() for n in range(3)] == [
        *([0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 1, 2]),
    ]


def test_later_english_text_follows_the_first(words):
    whole_T, first_T, second_T = (
        english_tokens(tokenizer_of(words), 50_000, 1, length, 0, number)[0]
        for length, number in ((720, 0), (360, 0), (360, 1))
    )
    np.testing.assert_array_equal(np.concatenate([first_T, second_T]), whole_T)


def test_tokens_beyond_the_vocabulary_are_left_out(words):
    assert english_tokens(tokenizer_of(words), 4, 2, 360, seed=0).max() < 4


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert tokenizer_of(tmp_path) is None
