"""Known folders are opened; for others the error says what is missing and what to do."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxllm.interop import CheckpointError
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.file_writer import write_files
from jaxllm.interop.formats.lazy_tensor import from_array
from jaxllm.interop.formats.pytorch import torch_zip
from jaxllm.interop.loading.checkpoint_dir import open_known_checkpoint, open_tensors, read_json


def message(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_known_checkpoint(path)
    return str(error.value)


def config(folder: Path, **fields: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))


def write(path: Path, lay_out, *names: str) -> None:
    tensors = {name: from_array(np.arange(3.0)) for name in names}
    write_files(path.parent, [lay_out(path.name, tensors)], tensors)


def test_folder_of_a_known_family_is_opened(tmp_path):
    config(tmp_path, model_type="llama", hidden_size=8)
    write(tmp_path / "model.safetensors", safetensors_file.lay_out, "a", "b")
    found = open_known_checkpoint(tmp_path)
    assert found.family.name == "llama"
    assert found.config["hidden_size"] == 8
    assert set(found.tensors) == {"a", "b"}


@pytest.mark.parametrize("first", ["safetensors", "bin"])
def test_safetensors_are_preferred_to_bin_files(tmp_path, first):
    config(tmp_path, model_type="llama")
    write(tmp_path / "pytorch_model.bin", torch_zip.lay_out, "module.from_bin")
    if first == "safetensors":
        write(
            tmp_path / "model.safetensors", safetensors_file.lay_out, "_orig_mod.from_safetensors"
        )
    assert list(open_known_checkpoint(tmp_path).tensors) == [f"from_{first}"]


def test_an_adapter_beside_the_weights_is_not_ignored_in_silence(tmp_path, caplog):
    config(tmp_path / "both", model_type="llama")
    write(tmp_path / "both" / "model.safetensors", safetensors_file.lay_out, "a")
    open_known_checkpoint(tmp_path / "both")
    assert not caplog.messages
    (tmp_path / "alone").mkdir()
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"})
    for name in ("both", "alone"):
        (tmp_path / name / "adapter_config.json").write_text(adapter)
    open_known_checkpoint(tmp_path / "both")
    said = "a PEFT adapter (LORA of a/b; adapter_config.json)"
    assert f"{said} is not applied; merge it" in caplog.messages[0]
    assert f"holds {said}, but no model; merge it" in message(tmp_path / "alone")


def test_missing_folder_suggests_the_nearest_name(tmp_path):
    (tmp_path / "llama-3").mkdir()
    assert message(tmp_path / "llama3").endswith("is not a folder; did you mean 'llama-3'?")
    (tmp_path / "file").touch()
    assert message(tmp_path / "file").endswith("give the folder that contains the file")


def test_missing_config_is_reported_with_advice(tmp_path):
    (tmp_path / "notes.txt").touch()
    expected = message(tmp_path)
    assert expected.startswith(f"{tmp_path} is not a checkpoint: config.json is missing")
    assert "(params.json would do)" in expected
    assert "the folder has notes.txt" in expected
    assert "give rules" in expected


def test_a_gguf_file_in_the_folder_is_suggested(tmp_path):
    (tmp_path / "model.Q4_0.gguf").touch()
    advice = "has no config.json, but GGUF files: give the path of one, such as"
    assert message(tmp_path) == f"{tmp_path} {advice} {tmp_path / 'model.Q4_0.gguf'}"


def test_checkpoint_in_a_subfolder_is_suggested(tmp_path):
    config(tmp_path / "step-100", model_type="llama")
    assert f"did you mean {tmp_path / 'step-100'}?" in message(tmp_path)


def test_long_file_list_is_shortened(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}").touch()
    assert "the folder has 00, 01, 02, 03, 04, 05, 06, 07, 22 more;" in message(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("llamma", "model_type 'llamma' is not supported; did you mean 'llama'?"),
        ("gemma3_txt", "did you mean 'gemma3_text'?"),
        ("zzz", "model_type 'zzz' is not supported; docs/families.md lists"),
        (["llama"], "model_type ['llama'] is not supported; docs/families.md lists"),
        (None, "config.json has no model_type"),
    ],
)
def test_unknown_model_type_suggests_only_the_nearest(tmp_path, given, expected):
    config(tmp_path, model_type=given)
    found = message(tmp_path)
    assert expected in found
    assert sum(f"'{family.model_type}'" in found for family in FAMILIES) <= 1


def test_missing_weights_are_reported(tmp_path):
    config(tmp_path, model_type="llama")
    assert message(tmp_path) == (
        f"{tmp_path} has the config of a llama checkpoint but no weights: expected "
        "model.safetensors.index.json or model.safetensors or pytorch_model.bin.index.json or "
        "pytorch_model.bin or .metadata; the folder has config.json"
    )


def test_a_single_file_of_any_name_is_the_model(tmp_path):
    config(tmp_path, model_type="llama")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        write(tmp_path / name, torch_zip.lay_out, "state")
    assert "but no weights" in message(tmp_path)
    write(tmp_path / "epoch=3.ckpt", torch_zip.lay_out, "a")
    assert list(open_known_checkpoint(tmp_path).tensors) == ["a"]
    write(tmp_path / "other.pth", torch_zip.lay_out, "b")
    assert "but no weights" in message(tmp_path)


def test_unreadable_file_is_a_checkpoint_error(tmp_path):
    config(tmp_path, model_type="llama")
    (tmp_path / "model.safetensors").mkdir()
    assert f"{tmp_path / 'model.safetensors'}: Is a directory" in message(tmp_path)


def test_all_tensor_files_are_found_without_a_config(tmp_path):
    write(tmp_path / "one.pt", torch_zip.lay_out, "a")
    write(tmp_path / "two.safetensors", safetensors_file.lay_out, "a")
    assert set(open_tensors(tmp_path)) == {"one.pt/a", "two.safetensors/a"}
    write(tmp_path / "model.safetensors", safetensors_file.lay_out, "b")
    assert set(open_tensors(tmp_path)) == {"b"}


def test_repeated_json_key_is_rejected(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="'a' occurs more than once"):
        read_json(tmp_path / "config.json")
