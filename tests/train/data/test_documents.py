"""Text data: token streams, windows, the cache and the default corpus."""

import itertools

import chex
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.train.data.batches import Batches
from jaxllm.train.data.documents import Corpus, DataConfig, Windows, load_corpus, token_stream
from jaxllm.train.data.tokenizers import ByteTokenizer


def batches_of(corpus: Corpus, *, seq_len: int, **options: int) -> Batches:
    return Batches(corpus.windows(seq_len), **options)


def take(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iterator, count))


@given(st.integers(2, 60), st.integers(1, 12))
def test_windows_contain_every_target_once_with_its_predecessor(length, seq_len):
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


def test_a_stream_ends_every_document_and_has_the_smallest_dtype():
    stream = token_stream(["ab", "", "c"], ByteTokenizer())
    assert stream.tolist() == [97, 98, 0, 0, 99, 0]
    assert stream.dtype == np.uint8


def test_a_cached_stream_is_tokenized_once(tmp_path, monkeypatch):
    first = token_stream(["ab", "c"], ByteTokenizer(), cache=str(tmp_path / "new"))
    monkeypatch.setattr(ByteTokenizer, "encode", None)
    again = token_stream(["ab", "c"], ByteTokenizer(), cache=str(tmp_path / "new"))
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)
    with pytest.raises(TypeError):  # other boundaries, another stream
        token_stream(["abc"], ByteTokenizer(), cache=str(tmp_path / "new"))


def test_a_cached_corpus_yields_the_same_batches(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"document {i} " * 5)
    options = {"text": (f"{tmp_path}/*.txt",), "held_out": 0.1}
    fresh = load_corpus(DataConfig(**options))
    cached = load_corpus(DataConfig(**options, cache=str(tmp_path / "cache")))
    sizes = {"seq_len": 16, "batch_size": 4}
    assert batches_of(fresh, **sizes).fingerprint() == batches_of(cached, **sizes).fingerprint()
    chex.assert_trees_all_equal(
        take(batches_of(fresh, **sizes).train(), 3), take(batches_of(cached, **sizes).train(), 3)
    )
    everything = load_corpus(DataConfig(text=options["text"], held_out=0, cache=str(tmp_path)))
    assert len(everything.train) == len(fresh.train) + len(fresh.held_out)
    assert not everything.held_out.size


def test_the_default_corpus_is_the_python_standard_library():
    found = load_corpus(DataConfig())
    assert found.train.dtype == np.uint8
    assert 0.005 < len(found.held_out) / len(found.train) < 0.05
    assert "import" in found.tokenizer.decode(found.train[:5000])


@pytest.mark.parametrize("bad", [{"held_out": 1.0}, {"held_out": -0.1}, {"seed": -1}])
def test_invalid_split_settings_are_rejected(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value} is not in"):
        DataConfig(**bad)
