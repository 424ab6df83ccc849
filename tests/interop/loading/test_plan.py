"""Plans account for every config field, tensor and array before any tensor is read."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from tiny import random_model

from jaxllm.interop import CheckpointError, plan, save_pretrained
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import from_stored
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.loading.checkpoint_dir import open_known_checkpoint
from jaxllm.interop.loading.plan import analyze_checkpoint, split_fused
from jaxllm.interop.loading.streaming.array_reads import find_arrays
from jaxllm.interop.rules.binding import bind
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import Rule
from jaxllm.params import parameter_shapes


@pytest.fixture(scope="module")
def model():
    return random_model(head_dim=8)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "llama"
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def llama(saved, tmp_path) -> Path:
    """Returns a copy of the checkpoint, to be modified."""
    return Path(shutil.copytree(saved, tmp_path / "llama"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename_tensors(folder: Path, **names: str) -> None:
    """Rewrites the checkpoint with other names for some tensors; dots are written as `__`."""
    new = {old.replace("__", "."): name for old, name in names.items()}
    stored = safetensors_file.read_checkpoint(folder)
    tensors = {new.get(name, name): from_stored(tensor) for name, tensor in stored.items()}
    files, _ = safetensors_file.lay_out_checkpoint(tensors, 1 << 30)
    write_files(folder, files, tensors)


def test_plan_reads_headers_only(model, saved, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(StoredTensor, "read", fail)
    planned = plan(saved)
    assert {n: a.shape for n, a in planned.arrays.items()} == dict(parameter_shapes(model))
    assert planned.config == model.config
    assert not planned.tolerated
    with pytest.raises(AssertionError, match="a tensor was read"):
        next(iter(planned.tensors.values())).read([(0, 1)])


def test_every_stored_tensor_is_moved_once(saved):
    planned = plan(saved)
    found = [read.tensor.name for read in planned.reads()]
    assert sorted(found) == sorted(planned.tensors)
    assert not list(planned.copies())


def test_copies_in_model_parallel_shards_are_compared_with_the_first(model, tmp_path):
    save_pretrained(model, tmp_path / "meta", format="meta", model_parallel=2)
    planned = plan(tmp_path / "meta")
    copies = dict(planned.copies())
    assert copies["01/norm.weight"] == "00/norm.weight"
    found = {(read.tensor.path, read.tensor.offset) for read in planned.reads()}
    places = {name: (tensor.path, tensor.offset) for name, tensor in planned.tensors.items()}
    assert {name for name, place in places.items() if place not in found} == copies.keys()


def test_plan_counts_bytes_and_dtype_changes(saved):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    alone, spread = plan(saved), plan(saved, mesh=mesh, dtype="bfloat16", max_ram="1MiB")
    total = sum(array.nbytes for array in alone.arrays.values())
    assert alone.bytes_by_device == {str(jax.local_devices()[0]): total}
    assert len(spread.bytes_by_device) == 8
    assert max(spread.bytes_by_device.values()) < total / 2
    assert spread.window_bytes <= 1 << 20
    assert not alone.dtype_changes
    assert spread.dtype_changes.keys() == spread.arrays.keys()
    assert set(spread.dtype_changes.values()) == {("float32", "bfloat16")}
    assert spread.config.numerics.param_dtype == "bfloat16"


def test_one_error_lists_every_problem(llama):
    edit_config(llama, is_causal=False)
    rename_tensors(llama, model__norm__weight="model.nrom.weight")
    with pytest.raises(CheckpointError) as error:
        plan(llama)
    *found, hint = error.value.problems
    assert hint.startswith("--allow is_causal ")
    assert {problem.partition(";")[0] for problem in found} == {
        "config.json: is_causal=False is not implemented, and transformers reads it",
        "model.norm.weight is missing",
        "model.nrom.weight is unexpected",
    }


def test_analysis_collects_problems_without_raising(llama):
    edit_config(llama, new_thing=7, hidden_act="cosine", is_causal=False)
    analysis = analyze_checkpoint(open_known_checkpoint(llama))
    assert any("cosine" in problem for problem in analysis.problems)
    assert any("is_causal=False" in problem for problem in analysis.problems)
    assert analysis.refused == {"hidden_act": "silu", "is_causal": None}
    assert analysis.unused.keys() >= {"new_thing"}
    assert {"new_thing", "hidden_act", "vocab_size"} <= analysis.fields.keys()


def test_unknown_fields_are_tolerated_unless_strict_where_nobody_knows_what_is_read(tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "meta", format="meta")
    params = tmp_path / "meta" / "params.json"
    params.write_text(json.dumps(json.loads(params.read_text()) | {"new_thing": 7}))
    with pytest.raises(CheckpointError, match="new_thing=7 is not a field known"):
        plan(tmp_path / "meta")
    planned = plan(tmp_path / "meta", strict=False)
    assert len(planned.tolerated) == 1
    assert "new_thing=7" in planned.tolerated[0]


def test_fields_that_transformers_does_not_read_are_listed(llama):
    edit_config(llama, new_thing=7)
    assert plan(llama).unused["new_thing"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "int8"}, "dtype='int8' is not one of"), ({"max_ram": "much"}, "is not a size")],
)
def test_invalid_arguments_are_rejected(saved, options, message):
    with pytest.raises(ValueError, match=message):
        plan(saved, **options)


def test_fused_tensor_is_split_only_if_its_rows_add_up(tmp_path):
    rules = [Rule("w#q : (N H) D", "q : D N H"), Rule("w#k : (K H) D", "k : D K H")]
    bound = bind(rules, {"N": 3, "K": 2, "H": 2, "D": 5}, {})
    for rows, names in ((10, {"w#q", "w#k"}), (12, {"w"})):
        whole = StoredTensor("w", np.dtype(np.float32), (rows, 5), tmp_path / "x", 0)
        parts = split_fused(bound, {"w": whole})
        assert parts.keys() == names
    fused = StoredTensor("w", np.dtype(np.float32), (10, 5), tmp_path / "x", 0)
    parts = split_fused(bound, {"w": fused})
    assert [(part.shape, part.offset) for part in parts.values()] == [((6, 5), 0), ((4, 5), 120)]


def test_arrays_of_a_stored_tensor_are_found():
    sizes = {"L": 3, "E": 2}
    assert list(find_arrays(Side.parse("layers.{L}.e.{E} : D"), {"L": 1}, sizes)) == [
        "layers.1.e.0",
        "layers.1.e.1",
    ]
    assert list(find_arrays(Side.parse("w : L D"), {"L": 1}, sizes)) == ["w"]
