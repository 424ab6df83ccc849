"""Text data: windows, the cache and the default corpus."""

import itertools

import chex
import numpy as np
import pytest

from jaxllm.train.data.batches import Batches
from jaxllm.train.data.documents import Corpus, DataConfig, load_corpus


def batches_of(corpus: Corpus, *, seq_len: int, **options: int) -> Batches:
    return Batches(corpus.windows(seq_len), **options)


def take(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iterator, count))


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
    parts = fresh.train, fresh.held_out
    assert len(everything.train.tokens) == sum(len(part.tokens) for part in parts)
    assert not everything.held_out.tokens.size


def test_the_default_corpus_is_the_python_standard_library():
    found = load_corpus(DataConfig())
    train, held_out = found.train.tokens, found.held_out.tokens
    assert train.dtype == np.uint8
    assert 0.005 < len(held_out) / len(train) < 0.05
    assert "import" in found.tokenizer.decode(train[:5000])


@pytest.mark.parametrize("bad", [{"held_out": 1.0}, {"held_out": -0.1}, {"seed": -1}])
def test_invalid_split_settings_are_rejected(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value} is not in"):
        DataConfig(**bad)


def test_joined_documents_are_a_choice_with_a_fingerprint_of_its_own(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    options = {"text": (f"{tmp_path}/*.txt",), "held_out": 0}
    separate = load_corpus(DataConfig(**options)).windows(16)
    joined = load_corpus(DataConfig(**options, packing="joined")).windows(16)
    names = {"tokens", "mask"}
    assert joined.train.take([0]).keys() == names
    assert separate.train.take([0]).keys() == {*names, "segment_ids", "positions"}
    assert joined.fingerprint == {
        name: value for name, value in separate.fingerprint.items() if "starts" not in name
    }
    assert joined.fingerprint != separate.fingerprint
