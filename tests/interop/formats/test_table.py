"""The format table: one new row adds a format everywhere, from recognition to the command line."""

import json
import math
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from tiny import random_model

from jaxllm.cli import main
from jaxllm.interop import CheckpointError, convert, inspect, load_pretrained, save_pretrained
from jaxllm.interop import verify as verify_checkpoint
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.formats.file_writer import PlannedFile
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.formats.table import FORMATS, ModelFormat, TensorFormat, writable_formats
from jaxllm.params import named_parameters

DATA, INDEX = "numbers.raw", "numbers.json"


def read_raw(path: Path) -> dict[str, StoredTensor]:
    """Reads tensors that follow each other in one file, described by another file."""
    places = json.loads((path / INDEX).read_text())
    return {
        name: StoredTensor(name, np.dtype(dtype), tuple(shape), path / DATA, offset)
        for name, (dtype, shape, offset) in places.items()
    }


def lay_out_raw(tensors, file, max_shard):
    places, index, offset = {}, {}, 0
    for name, tensor in tensors.items():
        places[name], index[name] = offset, (tensor.dtype.name, tensor.shape, offset)
        offset += tensor.nbytes
    return [PlannedFile(DATA, offset, {}, places, {})], {INDEX: json.dumps(index).encode()}


RAW = TensorFormat("raw", (DATA,), read_raw, lay_out_raw, variant_of="hf")


@pytest.fixture
def raw(monkeypatch):
    monkeypatch.setitem(FORMATS, RAW.name, RAW)


def arrays_of(model) -> dict[str, jax.Array]:
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def test_new_format_needs_only_one_row(raw, tmp_path, capsys):
    model = random_model(head_dim=8)
    save_pretrained(model, tmp_path / "saved", format="raw")  # exported
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {DATA, INDEX, "config.json"}

    again = load_pretrained(tmp_path / "saved")  # recognized and loaded
    chex.assert_trees_all_equal(arrays_of(again), arrays_of(model))

    found = inspect(tmp_path / "saved")
    assert found.ok
    assert found.family == "llama"
    assert found.num_values == sum(math.prod(a.shape) for a in arrays_of(model).values())

    verified = verify_checkpoint(tmp_path / "saved")
    assert verified.ok
    assert len(verified.tensors) == 30

    convert(tmp_path / "saved", tmp_path / "hf", to="hf")  # from it
    chex.assert_trees_all_equal(arrays_of(load_pretrained(tmp_path / "hf")), arrays_of(model))
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "raw"), "--to", "raw"]) == 0
    assert (tmp_path / "raw" / DATA).read_bytes() == (tmp_path / "saved" / DATA).read_bytes()

    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert "rules, raw" in " ".join(capsys.readouterr().out.split())


def test_tensors_of_a_new_format_are_found_without_a_config(raw, tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "saved", format="raw")
    (tmp_path / "saved" / "config.json").unlink()
    found = inspect(tmp_path / "saved")
    assert not found.ok
    assert sum(group.count for group in found.tensors) == 30


def test_format_without_a_row_is_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="format='raw' is not one of hf, meta, tlama"):
        save_pretrained(random_model(), tmp_path / "saved", format="raw")
    assert list(tmp_path.iterdir()) == []


def test_command_line_offers_the_writable_formats(capsys):
    assert writable_formats() == [
        *("hf", "meta", "tlama", "llm", "nima", "components", "native", "rules")
    ]
    with pytest.raises(SystemExit):
        main(["convert", "here", "there", "--to", "gguf"])
    assert "hf, meta, tlama" in capsys.readouterr().err


def test_every_family_has_a_format():
    by_families = [row for row in FORMATS.values() if isinstance(row, TensorFormat)]
    names = {row.family_format for row in by_families}
    assert {family.format for family in FAMILIES} | {"rules"} == names
    assert [row.name for row in FORMATS.values() if isinstance(row, ModelFormat)] == ["native"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.safetensors", "hf"),
        ("model.safetensors.index.json", "hf"),
        ("pytorch_model.bin", "bin"),
        ("consolidated.07.pth", "meta"),
        ("state_dict.pth", "tlama"),
        ("weights.pth", None),
    ],
)
def test_folder_is_recognized_by_its_files(tmp_path, file, name):
    (tmp_path / file).touch()
    rows = [row for row in FORMATS.values() if row.holds(tmp_path)]
    assert next((row.name for row in rows), None) == name
