"""Streams of documents: the split, the cache, and rows that cannot be used."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.tokenization import ByteTokenizer
from jaxllm.train.data.documents import text_source
from jaxllm.train.data.files import Row
from jaxllm.train.data.files.row import same
from jaxllm.train.data.streams.building import Source, build_streams
from jaxllm.train.data.streams.stream_writer import Encoded

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def source_of(texts: list[str]) -> Source[str]:
    """Texts as a source, whose tokens are their bytes."""
    made = text_source(None, ByteTokenizer())
    rows = [Row("texts", "row", number, text, same) for number, text in enumerate(texts, 1)]
    return Source(lambda: rows, same, made.content, made.encode, "x", 256, cut=made.cut)


def texts_of(stream) -> list[str]:
    parts = np.split(stream.tokens, stream.starts[1:])
    return [bytes(part[:-1].tolist()).decode() for part in parts if len(part)]


def split(texts: list[str], fraction: float) -> tuple[list[str], list[str]]:
    streams = build_streams(source_of(texts), held_out=fraction)
    return texts_of(streams.train), texts_of(streams.held_out)


@given(st.lists(TEXT, min_size=2), st.floats(0.001, 0.999))
@settings(deadline=None)
def test_the_split_is_a_partition_by_distinct_texts(documents, fraction):
    train, held_out = split(documents, fraction)
    if len(set(documents)) == 1:
        assert train[0] + held_out[0] == documents[0]
        return
    assert sorted(train + held_out) == sorted(documents)
    assert train
    assert held_out
    assert not set(train) & set(held_out)


def test_the_split_of_a_document_does_not_depend_on_others():
    documents = [f"document {i}" for i in range(2000)]
    train, held_out = split(documents, 0.1)
    assert 150 < len(held_out) < 250
    fewer_train, fewer_held_out = split(documents[::-2], 0.1)
    assert set(fewer_train) <= set(train)
    assert set(fewer_held_out) <= set(held_out)
    assert held_out[:2] == ["document 6", "document 11"]  # must never change


def test_a_single_document_is_cut_near_its_end():
    assert split(["0123456789"], 0.2) == (["01234567"], ["89"])
    assert split(["0123456789"], 0) == (["0123456789"], [])
    assert split([], 0.2) == ([], [])


@pytest.mark.parametrize("cached", [False, True])
def test_bad_rows_stop_or_are_counted(cached, tmp_path, caplog):
    lines = [json.dumps({"text": f"text {i}"}) for i in range(600)]
    lines[300], lines[301], lines[450] = "{", '{"txt": 1}', json.dumps({"text": "a\0b"})
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = text_source([str(tmp_path / "a.jsonl")], ByteTokenizer())
    cache = str(tmp_path / "cache") if cached else None
    with pytest.raises(UserError, match=r"a\.jsonl, line 301: .*; data\.bad_rows=skip") as error:
        build_streams(source, cache=cache)
    assert "\n" not in str(error.value)
    streams = build_streams(source, held_out=0.1, cache=cache, bad_rows="skip")
    expected = [f"text {i}" for i in range(600) if i not in (300, 301, 450)]
    assert sorted(texts_of(streams.train) + texts_of(streams.held_out)) == sorted(expected)
    assert "skipped 3 of 600 rows; the first: " in caplog.text
    assert "a.jsonl, line 301: " in caplog.text


def test_a_row_that_cannot_be_encoded_stops_with_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "a\\u0000b"}\n')
    source = text_source([str(tmp_path / "a.jsonl")], ByteTokenizer())
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: .* is NUL"):
        build_streams(source, cache=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_stream_is_encoded_once(tmp_path):
    counts = []

    def counted(texts):
        counts.append(len(texts))
        return [Encoded([*text.encode(), 0]) for text in texts]

    plain, cache = source_of(["ab", "c", "d"]), str(tmp_path / "new")
    make = lambda texts, identity: Source(  # noqa: E731
        source_of(texts).rows, same, plain.content, counted, identity, 256
    )
    first = build_streams(make(["ab", "c", "d"], "x"), held_out=0.3, cache=cache)
    again = build_streams(make(["ab", "c", "d"], "x"), held_out=0.3, cache=cache)
    assert counts == [3]
    for one, other in zip(first, again, strict=True):
        assert isinstance(other.tokens, np.memmap)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.starts, other.starts)
    # Another encoding, boundaries or split: another stream.
    build_streams(make(["ab", "c", "d"], "y"), held_out=0.3, cache=cache)
    build_streams(make(["abc", "d"], "x"), held_out=0.3, cache=cache)
    build_streams(make(["ab", "c", "d"], "x"), cache=cache)
    assert counts == [3, 3, 2, 3]
