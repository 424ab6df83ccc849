"""Saving any pytree: the same bits, files and config as the checkpoint that it came from."""

import json
import re
from types import SimpleNamespace

import any_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save, save_file
from together import run_together

from jaxllm.errors import UserError
from jaxllm.interop import CheckpointError, Rule, load_into, save_from
from jaxllm.interop.formats.safetensors_file import read_header

KINDS = {"equinox": any_models.equinox_llama, "linen": any_models.linen_llama}
RULES = [Rule("w#a : A B", "a : B A"), Rule("w#b : C B", "b : C B"), Rule("n : A", "n : A")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    any_models.torch_llama().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def tree():
    rng = np.random.default_rng(0)
    drawn = {"a": (4, 3), "b": (5, 4), "n": (3,)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in drawn.items()}


def bits(file):
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in load_file(file).items()}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_bits_and_files_come_back(name, folder, tmp_path):
    shapes, _, rules = KINDS[name]()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec())

    def place(name, leaf):
        axes = [None] * leaf.shape.index(48) + ["x"]
        return NamedSharding(mesh, PartitionSpec(*axes)) if "norm" not in name else split

    model = load_into(shapes, folder, rules, shardings=place)
    save_from(model, tmp_path / "out", rules, like=folder)
    assert bits(tmp_path / "out" / "model.safetensors") == bits(folder / "model.safetensors")
    names = {file.name for file in folder.iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")


def test_without_another_checkpoint_there_are_only_tensors(tmp_path):
    given = tree()
    save_from(given, tmp_path / "out", RULES)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(found["w"], np.concatenate([given["a"].T, given["b"]]))
    again = load_into(given, tmp_path / "out", RULES)
    assert all(np.array_equal(again[name], given[name]) for name in given)


def test_the_type_of_file_is_that_of_the_other_checkpoint(tmp_path):
    given, like = tree(), tmp_path / "like"
    like.mkdir()
    state = {"w": torch.zeros(8, 4), "n": torch.zeros(3), "copy": torch.zeros(3)}
    torch.save(state, like / "mine.pt")
    rules = SimpleNamespace(rules=RULES, tied={"copy": "n"})
    for number, source in enumerate((like, like / "mine.pt")):
        save_from(given, tmp_path / str(number), rules, like=source)
        found = torch.load(tmp_path / str(number) / "mine.pt")
        assert found.keys() == state.keys()
        np.testing.assert_array_equal(found["copy"].numpy(), given["n"])


def test_large_checkpoints_are_written_in_shards(tmp_path):
    save_from(tree(), tmp_path / "out", RULES, max_shard=130)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "model.safetensors.index.json" in names
    assert "model-00002-of-00002.safetensors" in names
    again = load_into(tree(), tmp_path / "out", RULES)
    assert all(np.array_equal(again[name], x) for name, x in tree().items())


def test_a_dtype_is_cast_to_and_named_in_the_config(folder, tmp_path):
    shapes, _, rules = any_models.linen_llama()
    model = load_into(shapes, folder, rules)
    save_from(model, tmp_path / "out", rules, like=folder, dtype="bfloat16")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((folder / "config.json").read_text())
    assert before["dtype"] == "float32"
    assert fields == {**before, "dtype": "bfloat16"}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype.name for x in found.values()} == {"bfloat16"}
    with pytest.raises(UserError, match="dtype='int8' is not one of"):
        save_from(model, tmp_path / "other", rules, dtype="int8")


DTYPES = ["float32", "bfloat16", "float16", "int8", "uint32", "float8_e4m3fn"]


def test_numbers_that_become_zero_are_counted(tmp_path, caplog):
    small = tree() | {"n": jnp.asarray([1e-9, 1.0, -1e-8])}
    save_from(small, tmp_path / "out", RULES, dtype="float16")
    assert caplog.messages == [
        "underflow: 2 become zero in float16, up to 2.98e-08 in magnitude\n  n: 2 of 3"
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_comes_back(dtype, tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 4), "n": (3,)}
    size = np.dtype(dtype).itemsize
    stored = {
        name: rng.integers(0, 256, (*shape, size), np.uint8).view(dtype)[..., 0]
        for name, shape in shapes.items()
    }
    like = tmp_path / "like"
    like.mkdir()
    (like / "model.safetensors").write_bytes(save(stored))
    loaded = load_into(tree(), like, RULES)
    assert {x.dtype.name for x in loaded.values()} == {dtype}
    save_from(loaded, tmp_path / "out", RULES, like=like)
    found = read_header(tmp_path / "out" / "model.safetensors")
    assert {name: x.read().tobytes() for name, x in found.items()} == {
        name: x.tobytes() for name, x in stored.items()
    }


def test_a_type_of_file_that_is_only_read_becomes_safetensors(tmp_path):
    gguf = pytest.importorskip("gguf")
    stored = {"w": np.arange(32, dtype=np.float32).reshape(8, 4), "n": np.ones(3, np.float32)}
    file = tmp_path / "like.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for name, array in stored.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_from(load_into(tree(), file, RULES), tmp_path / "out", RULES, like=file)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == stored.keys()
    assert all(np.array_equal(found[name], stored[name]) for name in stored)


def test_ignored_tensors_are_taken_from_the_other_checkpoint(tmp_path):
    like = tmp_path / "like"
    like.mkdir()
    stored = {"w": np.zeros((8, 4)), "n": np.zeros(3), "mask": np.arange(5)}
    save_file(stored, like / "model.safetensors")
    rules = SimpleNamespace(rules=RULES, ignored={"mask": "a constant"})
    save_from(tree(), tmp_path / "out", rules, like=like)
    found = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(found["mask"], stored["mask"])
    np.testing.assert_array_equal(found["n"], tree()["n"])


def test_tied_leaves_must_be_equal_and_are_stored_as_in_the_other_checkpoint(tmp_path):
    given = {**tree(), "head": tree()["n"]}
    rules = SimpleNamespace(rules=[*RULES, Rule("head : A", "head : A")], tied={"head": "n"})
    save_from(given, tmp_path / "both", rules)
    assert set(load_file(tmp_path / "both" / "model.safetensors")) == {"w", "n", "head"}
    save_from(tree(), tmp_path / "one", RULES)
    save_from(given, tmp_path / "out", rules, like=tmp_path / "one")
    assert bits(tmp_path / "out" / "model.safetensors") == bits(
        tmp_path / "one" / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="head is tied to n, but their leaves differ"):
        save_from({**given, "head": given["n"] + 1}, tmp_path / "other", rules)
    assert not (tmp_path / "other").exists()


def test_derived_tensors_are_computed(tmp_path):
    rules = SimpleNamespace(rules=RULES, derived={"ids": lambda: np.arange(4)})
    save_from(tree(), tmp_path / "out", rules)
    np.testing.assert_array_equal(
        load_file(tmp_path / "out" / "model.safetensors")["ids"], np.arange(4)
    )


def test_every_problem_is_listed_and_nothing_is_written(tmp_path):
    given = {**tree(), "more": jnp.zeros(1), "n": jax.ShapeDtypeStruct((3,), np.float32)}
    with pytest.raises(CheckpointError) as caught:
        save_from(given, tmp_path / "out", RULES)
    assert caught.value.problems == (
        "no rule covers more of the model",
        "n is only a shape and a dtype",
    )
    assert list(tmp_path.iterdir()) == []


def test_kept_leaves_are_not_stored(tmp_path):
    rules = SimpleNamespace(rules=RULES, kept={"more": "computed"})
    save_from({**tree(), "more": jax.ShapeDtypeStruct((1,), np.float32)}, tmp_path / "out", rules)
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {"w", "n"}


def test_tensors_that_the_config_beside_them_does_not_describe_are_refused(tmp_path):
    like = tmp_path / "like"
    like.mkdir()
    rng = np.random.default_rng(1)
    arrays = {"w": rng.standard_normal((9, 4)), "other": rng.standard_normal(2)}
    save_file(arrays, like / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        save_from(tree(), tmp_path / "out", RULES, like=like)
    assert set(caught.value.problems) == {
        "n is not in the checkpoint",
        "other is only in the checkpoint",
        "w has shape (8, 4), but (9, 4) in the checkpoint",
    }
    assert not (tmp_path / "out").exists()


PROCESS = """
import os
import sys
import jax
import numpy as np
jax.distributed.initialize(num_processes=2, process_id=int(os.environ["JAX_PROCESS_ID"]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxllm.interop import Rule, load_into, save_from
mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("x"))
names = {"a": (4, 4), "b": (8, 4), "head": (8, 4)}
shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in names.items()}
class rules:
    rules = [Rule("a : A B", "a : B A"), Rule("b : C B", "b : C B"), Rule("h : C B", "head : C B")]
    tied = {"h": "b"}
source, destination = sys.argv[1:]
tree = load_into(shapes, source, rules, shardings=split)
assert len(tree["a"].addressable_shards) == 2
save_from(tree, destination, rules, like=source)
"""


@pytest.mark.exhaustive
def test_two_processes_load_their_shards_and_write_one_checkpoint(tmp_path):
    like, rng = tmp_path / "like", np.random.default_rng(0)
    like.mkdir()
    arrays = {"a": rng.standard_normal((4, 4)), "b": rng.standard_normal((8, 4))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    save_file(arrays, like / "model.safetensors")
    command = ["-c", PROCESS, str(like), str(tmp_path / "out")]
    run_together(command, command, devices=2)
    assert bits(tmp_path / "out" / "model.safetensors") == bits(like / "model.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"like", "out"}


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(CheckpointError, match=re.escape("is not an empty folder")):
        save_from(tree(), tmp_path, RULES)
    assert (tmp_path / "x").read_text() == "mine"
