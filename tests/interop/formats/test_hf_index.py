"""The index file decides where tensors lie; one error lists everything wrong with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.hf_index import read_indexed
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

INDEX_NAME = safetensors_file.INDEX_NAME


def sources(arrays: dict) -> dict[str, TensorSource]:
    return {name: from_array(array) for name, array in arrays.items()}


def write(path: Path, tensors: dict[str, TensorSource]) -> None:
    write_files(path.parent, [safetensors_file.lay_out(path.name, tensors)], tensors)


def read_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    return read_indexed(directory / INDEX_NAME, safetensors_file.read_header)


def assert_same(stored: dict[str, StoredTensor], arrays: dict) -> None:
    assert list(stored) == list(arrays)
    for name, array in arrays.items():
        assert stored[name].read().tobytes() == array.tobytes()


def index(directory: Path, places: object) -> None:
    (directory / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_index_file_decides_which_shard_is_read(tmp_path):
    write(tmp_path / "model.safetensors", {"old": from_array(np.zeros(1))})
    write(tmp_path / "stale.safetensors", {"b": from_array(np.zeros(1))})
    write(tmp_path / "shard", sources({"a": np.ones(1), "b": np.ones(2)}))
    index(tmp_path, {"b": "shard", "a": "shard"})
    assert_same(read_checkpoint(tmp_path), {"b": np.ones(2), "a": np.ones(1)})


def test_shards_may_be_links_as_in_the_hub_cache(tmp_path):
    (tmp_path / "snapshot").mkdir()
    write(tmp_path / "blob", {"a": from_array(np.ones(1))})
    (tmp_path / "snapshot" / "shard").symlink_to(tmp_path / "blob")
    index(tmp_path / "snapshot", {"a": "shard"})
    assert_same(read_checkpoint(tmp_path / "snapshot"), {"a": np.ones(1)})


def test_one_error_lists_every_problem_of_an_index(tmp_path):
    directory = tmp_path / "model"
    (directory / "folder").mkdir(parents=True)
    write(tmp_path / "outside", {"x": from_array(np.ones(1))})
    write(directory / "1", sources({"a": np.ones(1), "b": np.ones(1)}))
    write(directory / "2", sources({"b": np.ones(1), "c": np.ones(1)}))
    (directory / "3").write_bytes(b"")
    places = {"a": "1", "b": "2", "e": "3", "f": "4", "g": "../outside", "h": "folder"}
    index(directory, {**places, "i": str(tmp_path / "outside"), "j": ".."})
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(directory)
    found = [problem.replace(f"{tmp_path}/", "") for problem in error.value.problems]
    listed = "model/model.safetensors.index.json: "
    assert sorted(found) == sorted(
        [
            "model/1: tensor 'b' is in this file and in others, but the index places it in '2'",
            "model/3: an empty file: download it again",
            f"{listed}'4' is not a file in this folder",
            f"{listed}'../outside' is not a file in this folder",
            f"{listed}'folder' is not a file in this folder",
            f"{listed}'outside' is not a file in this folder",
            f"{listed}'..' is not a file in this folder",
        ]
    )


def test_a_stale_index_is_read_as_transformers_does(tmp_path, caplog):
    # Each tensor is in one of the shards that the index lists, if not in the one that it says.
    arrays = {"a": np.ones(1), "moved": np.ones(2), "new": np.ones(3)}
    write(tmp_path / "1", sources({"a": arrays["a"], "moved": arrays["moved"]}))
    write(tmp_path / "2", sources({"new": arrays["new"]}))
    index(tmp_path, {"moved": "2", "gone": "1", "a": "1"})
    stored = read_checkpoint(tmp_path)
    assert_same(stored, {name: arrays[name] for name in ("moved", "a", "new")})
    listed = f"{tmp_path / INDEX_NAME} is stale: "
    assert caplog.messages == [
        f"{listed}it lists gone, which no file has",
        f"{listed}in other files than it says: moved, new",
    ]


def test_a_tensor_that_two_shards_have_is_refused_even_if_the_index_lacks_it(tmp_path):
    write(tmp_path / "1", sources({"a": np.ones(1), "b": np.ones(1)}))
    write(tmp_path / "2", sources({"c": np.ones(1), "b": np.zeros(1)}))
    index(tmp_path, {"a": "1", "c": "2"})
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path)
    assert list(error.value.problems) == [
        f"{tmp_path}/{file}: tensor 'b' is in this file and in others, but not in the index"
        for file in "12"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "the JSON is not an object"),
        ("{}", "weight_map does not map tensor names to file names"),
        ('{"weight_map": {"a": 1}}', "weight_map does not map tensor names to file names"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "key 'a' occurs more than once"),
    ],
)
def test_damaged_index_file_is_named(tmp_path, text, expected):
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path)
    assert list(error.value.problems) == [f"{tmp_path / INDEX_NAME}: {expected}"]
