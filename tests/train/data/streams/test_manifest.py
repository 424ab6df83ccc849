"""A manifest names its shards; ones that are gone or changed are named."""

import json

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.train.data.streams.manifest import (
    Manifest,
    describe_shard,
    read_manifest,
    read_shards,
)
from jaxllm.train.data.streams.stream_writer import Encoded, StreamWriter

DOCUMENTS = [[*range(7)], [3] * 83, [*range(200)]]


@pytest.fixture
def folder(tmp_path):
    shards = []
    for number, ids in enumerate(DOCUMENTS):
        file = tmp_path / f"train-{number}.npy"
        writer = StreamWriter(np.dtype(np.uint8), file, with_targets=True)
        writer.add([Encoded(ids, np.array(ids) % 2 > 0), Encoded([1, 2])])
        writer.close()
        shards.append(describe_shard(file, "train"))
    Manifest("bytes", 256, {"tokenizer": "bytes"}, 0, tuple(shards)).write(tmp_path)
    return tmp_path


def test_shards_are_one_stream(folder):
    manifest = read_manifest(folder)
    stream = read_shards(folder, manifest, "train", 256)
    expected = [token for ids in DOCUMENTS for token in (*ids, 1, 2)]
    assert stream.tokens[:].tolist() == expected
    assert stream.starts[:].tolist() == [0, 7, 9, 92, 94, 294]
    assert stream.is_target[[1, 2, 7, 9]].tolist() == [True, False, True, True]
    assert (manifest.count("documents", "train"), manifest.count("tokens", "train")) == (6, 296)
    assert manifest.count("tokens", "held_out") == 0
    assert len(read_shards(folder, manifest, "held_out", 256).tokens) == 0


@pytest.mark.parametrize("name", ["train-1.npy", "train-1.starts.npy", "train-1.targets.npy"])
@pytest.mark.parametrize("change", ["gone", "flipped", "cut"])
def test_a_shard_that_is_gone_or_changed_is_named(name, change, folder):
    file = folder / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(content if change == "flipped" else content[:-1])
    with pytest.raises(UserError, match=rf"{name}: this shard is (gone|not the one that .*names)"):
        read_shards(folder, read_manifest(folder), "train", None)


@pytest.mark.parametrize("change", [{"version": 2}, {"shards": [{}]}, {"more": 1}, None])
def test_a_manifest_of_another_kind_is_named(change, folder):
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    file.write_text("[]" if change is None else json.dumps({**data, **change}))
    with pytest.raises(UserError, match=r"manifest\.json: (this is no manifest|version 2)"):
        read_manifest(folder)
