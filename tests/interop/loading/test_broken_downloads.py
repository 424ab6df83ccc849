"""Files that were not downloaded, or only in part, are told in one line, whatever their format."""

import json
import shutil

import pytest
import torch
import transformers
from hf_case import SIZES, randomize

from jaxllm.interop import CheckpointError, inspect, load_pretrained

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1969216\n"
PAGE = b"<!doctype html>\n<html></html>"
NAMES = {
    "safetensors": "model.safetensors",
    "bin": "pytorch_model.bin",
    "legacy": "pytorch_model.bin",
}
STAND_INS = {"pointer": (POINTER, "a Git LFS pointer to 1,969 kB"), "page": (PAGE, "a web page")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    model = randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)))
    model.save_pretrained(root / "safetensors")
    for kind in ("bin", "legacy"):
        model.config.save_pretrained(root / kind)
        is_new = {"_use_new_zipfile_serialization": kind == "bin"}
        torch.save(model.state_dict(), root / kind / NAMES[kind], **is_new)
    return root


def message(path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_pretrained(path)
    found = inspect(path)
    assert "\n".join(found.problems) == str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", NAMES)
def test_a_part_says_how_much_of_it_is_there(folders, kind, tmp_path):
    folder = shutil.copytree(folders / kind, tmp_path / "part")
    file = folder / NAMES[kind]
    size = file.stat().st_size
    with file.open("rb+") as stream:
        stream.truncate(size // 2)
    half = f"{size // 2 / 1000:,.0f}"
    all_of_it = "" if kind == "bin" else f"{half} of {size / 1000:,.0f} kB are there"
    said = all_of_it or f"only its first {half} kB are there"
    assert message(folder) == f"{file}: cut short: {said}; download it again"
    assert inspect(file).problems == (message(folder),)


@pytest.mark.parametrize("stand_in", STAND_INS)
@pytest.mark.parametrize("name", ["config.json", *dict.fromkeys(NAMES.values())])
def test_a_stand_in_is_named(folders, name, stand_in, tmp_path):
    folder = shutil.copytree(folders / "bin", tmp_path / "folder")
    content, said = STAND_INS[stand_in]
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(folder)
    assert str(error.value).startswith(f"{folder / name}: {said}")
    assert "\n" not in str(error.value)
    assert inspect(folder).problems == (str(error.value),)


def test_a_shard_and_an_index_may_be_stand_ins(folders, tmp_path):
    folder = shutil.copytree(folders / "safetensors", tmp_path / "shards")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    (folder / "model-1.safetensors").write_bytes(POINTER)
    assert message(folder).startswith(f"{folder / 'model-1.safetensors'}: a Git LFS pointer")
    index.write_bytes(PAGE)
    assert message(folder).startswith(f"{index}: a web page")


def test_a_folder_without_a_config_says_so_in_one_line(folders, tmp_path):
    folder = shutil.copytree(folders / "safetensors", tmp_path / "bare")
    (folder / "config.json").unlink()
    found = message(folder)
    assert "config.json is missing" in found
    assert "\n" not in found


def test_one_file_is_listed_with_what_it_becomes(folders, tmp_path):
    found = inspect(folders / "safetensors" / "model.safetensors")
    assert (found.family, found.ok) == ("llama", True)
    uses = {group.name: group.use for group in found.tensors}
    assert uses["model.embed_tokens.weight"] == "embed.embedding"
    shutil.copy(folders / "legacy" / "pytorch_model.bin", tmp_path / "alone.pth")
    alone = inspect(tmp_path / "alone.pth")
    assert (alone.family, alone.ok, alone.num_values) == (None, True, found.num_values)
    assert {group.use for group in alone.tensors} == {"not known without a config beside the file"}
