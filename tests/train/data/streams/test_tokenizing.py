"""Shards are the same on any number of workers and after any interruption."""

import functools
import json

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.tokenization import ByteTokenizer
from jaxllm.train.data.documents import text_source
from jaxllm.train.data.streams.manifest import read_manifest, read_shards
from jaxllm.train.data.streams.tokenizing import Options, sizes_of, tokenize_files


def open_bytes(files):
    return text_source(files, ByteTokenizer())


class StopError(Exception):
    pass


@pytest.fixture
def options(tmp_path):
    """Three files of 1,000 documents, of which two are one task; every tenth row is bad."""
    for name in "abc":
        lines = [json.dumps({"text": f"{name} {i} " * (i % 7)}) for i in range(1000)]
        lines[5::100] = ["{"] * 10
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files, sizes = sizes_of([f"{tmp_path}/*.jsonl"])
    made_by = {"tokenizer": "bytes"}
    return Options(
        *(files, sizes, "bytes", 256, made_by, 0.1, "skip"),
        shard_tokens=6000,
        unit_bytes=sizes[0] + 1,
    )


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def nothing(share, tokens):
    pass


def test_shards_have_every_document_once(options, tmp_path):
    shown = []
    manifest = tokenize_files(
        open_bytes, options, tmp_path / "out", 1, lambda *progress: shown.append(progress)
    )
    assert read_manifest(tmp_path / "out") == manifest
    assert manifest.skipped == 30
    assert len(manifest.shards) > 6
    texts = []
    for split in ("train", "held_out"):
        stream = read_shards(tmp_path / "out", manifest, split, None)
        tokens = stream.tokens[:].tolist()
        ends = [*stream.starts[1:], len(tokens)]
        found = [
            bytes(tokens[start : end - 1]).decode()
            for start, end in zip(stream.starts[:], ends, strict=True)
        ]
        assert manifest.count("documents", split) == len(found)
        assert manifest.count("tokens", split) == len(tokens)
        texts += found
    expected = [f"{name} {i} " * (i % 7) for name in "abc" for i in range(1000) if i % 100 != 5]
    assert sorted(texts) == sorted(expected)
    assert 150 < manifest.count("documents", "held_out") < 450  # many are the empty text
    shares = [share for share, _ in shown]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shown[-1][1] == sum(shard.tokens for shard in manifest.shards)


@pytest.mark.parametrize("stops", [1, 3])
def test_an_interrupted_folder_is_continued_to_the_same_bytes(stops, options, tmp_path):
    tokenize_files(open_bytes, options, tmp_path / "whole", 1, nothing)

    for stop in range(stops):
        calls = []

        def show(share, tokens, calls=calls, stop=stop):
            calls.append(share)
            if len(calls) == 4 + stop:
                raise StopError

        with pytest.raises(StopError):
            tokenize_files(open_bytes, options, tmp_path / "parts", 1, show)
    tokenize_files(open_bytes, options, tmp_path / "parts", 1, nothing)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.exhaustive
def test_workers_write_the_same_bytes(options, tmp_path):
    tokenize_files(open_bytes, options, tmp_path / "one", 1, nothing)
    tokenize_files(open_bytes, options, tmp_path / "two", 2, nothing)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_options_do_not_continue_a_folder(options, tmp_path):
    def show(share, tokens):
        raise StopError

    with pytest.raises(StopError):
        tokenize_files(open_bytes, options, tmp_path / "out", 1, show)
    changed = options.__class__(**{**options.__dict__, "held_out": 0.2})
    with pytest.raises(UserError, match="was begun with other held_out; run the same command"):
        tokenize_files(open_bytes, changed, tmp_path / "out", 1, nothing)
    tokenize_files(open_bytes, options, tmp_path / "out", 1, nothing)
    with pytest.raises(UserError, match="already has token shards"):
        tokenize_files(open_bytes, options, tmp_path / "out", 1, nothing)
    with pytest.raises(UserError, match="is not empty"):
        tokenize_files(open_bytes, options, tmp_path, 1, nothing)


def test_a_bad_row_stops_and_leaves_what_is_whole(options, tmp_path):
    strict = options.__class__(**{**options.__dict__, "bad_rows": "stop"})
    with pytest.raises(UserError, match=r"a\.jsonl, line 6: "):
        tokenize_files(open_bytes, strict, tmp_path / "out", 1, nothing)
    assert [*contents(tmp_path / "out")] == ["started.json"]


def test_a_worker_that_fails_says_why(options, tmp_path):
    opened = functools.partial(text_source, tokenizer=ByteTokenizer(), key="body")
    strict = options.__class__(**{**options.__dict__, "bad_rows": "stop"})
    with pytest.raises(UserError, match=r"line 1: .* under 'body'"):
        tokenize_files(opened, strict, tmp_path / "out", 1, nothing)
    assert np.all([file.suffix == ".json" for file in (tmp_path / "out").iterdir()])
