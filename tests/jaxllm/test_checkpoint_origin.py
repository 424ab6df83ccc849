"""A model remembers the checkpoint that it was loaded from, and exports take its files along."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny import random_model

from jaxllm.checkpoint_origin import KEPT, MOST_BYTES, Origin, copy_files, describe_adapter
from jaxllm.params import describe, from_description

ORIGIN = Origin(family="llama", config='{"rms_norm_eps": 1e-6}', layout="{}", directory="/models")


@pytest.mark.parametrize("origin", [None, ORIGIN])
def test_it_comes_back_from_the_description_of_a_model(origin):
    """The metadata of a native checkpoint is JSON."""
    model = random_model()
    model.origin = origin
    description = json.loads(json.dumps(describe(model)))
    assert from_description(description).origin == origin


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ORIGIN.family = "gpt2"


CARRIED = (
    *("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "LICENSE"),
    *("additional_chat_templates/rag.jinja", "preprocessor_config.json", "modeling_x.py"),
    *("generation_config.json", "vocab.txt", "an unknown file"),
)
REPLACED = ("config.json", "model.safetensors", "pytorch_model-00001-of-00002.bin")
LEFT_OUT = {
    "adapter_config.json": "of a PEFT adapter, which is not applied",
    "adapter_model.safetensors": "of a PEFT adapter, which is not applied",
    "checklist.chk": "checksums of other weights",
    "consolidated.safetensors": "other weights, or state of a training",
    "optimizer.pt": "other weights, or state of a training",
    "original/": "a folder with other weights",
    "trainer_state.json": "state of an earlier training",
}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{folder.name}: {name}")
    return folder


def files_of(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def origin_at(folder: Path) -> Origin:
    return dataclasses.replace(ORIGIN, directory=str(folder))


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_all_files_but_weights_are_copied_and_the_others_listed(tmp_path, out, caplog):
    weights = [name for name in LEFT_OUT if not name.endswith("/")] + ["original/x.pth"]
    source = fill(tmp_path / "in", *CARRIED, *REPLACED, *weights, ".git/config")
    with (source / "merges.txt").open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    copy_files(origin_at(source), out)
    assert files_of(out) == set(CARRIED)
    listed = LEFT_OUT | {"merges.txt": "larger than 100 MB"}
    parts = ", ".join(f"{name} ({listed[name]})" for name in sorted(listed))
    assert caplog.messages == [f"not copied from {source}: {parts}"]


@pytest.mark.parametrize("start", [b"PK\3\4", b"\x80\2}", bytes(8) + b'{"a":'])
def test_weights_are_known_by_their_content_too(tmp_path, out, start):
    source = fill(tmp_path / "in", "config.json", "LICENSE")
    (source / "weights").write_bytes(start + bytes(99))
    copy_files(origin_at(source), out)
    assert files_of(out) == {"LICENSE"}


def test_only_tokenizer_files_are_copied_from_a_folder_that_is_no_checkpoint(tmp_path, out):
    """With rules of one's own the weights may lie beside anything."""
    source = fill(tmp_path / "project", "tokenizer.json", "notes.txt", "data/secret.txt")
    copy_files(origin_at(source), out)
    assert files_of(out) == {"tokenizer.json"}


def test_every_kept_file_is_copied_and_other_folders_take_precedence(tmp_path, out):
    kept = fill(tmp_path / KEPT, "LICENSE", "tokenizer.json")
    copy_files(origin_at(kept), out, fill(tmp_path / "run", "tokenizer.json", "metrics.jsonl"))
    assert files_of(out) == {"LICENSE", "tokenizer.json"}
    assert (out / "tokenizer.json").read_text() == "run: tokenizer.json"


def test_a_checkpoint_that_is_written_inside_its_origin_is_not_copied(tmp_path, caplog):
    """Nor is an earlier native checkpoint there: it holds other weights."""
    base = fill(tmp_path / "base", "config.json", "tokenizer.json", "chat/rag.jinja")
    fill(base, "new.partial/journal.jsonl", "new.partial/checkpoint/checkpoints/0/model/d/0123")
    fill(base, "old/checkpoints/0/_CHECKPOINT_METADATA", "old/checkpoints/0/model/d/0123")
    inside = base / "new.partial" / "checkpoint"
    copied = inside / KEPT
    copied.mkdir()
    copy_files(origin_at(base), copied, base)
    assert files_of(copied) == {"tokenizer.json", "chat/rag.jinja"}
    assert caplog.messages == [f"not copied from {base}: old/ (a folder with other weights)"]


def test_an_origin_that_is_gone_is_said(tmp_path, out, caplog):
    copy_files(origin_at(tmp_path / "gone"), out)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'gone'}, which the model came from, does not exist")


def test_an_adapter_is_described(tmp_path):
    assert describe_adapter(fill(tmp_path / "base", "config.json")) is None
    folder = fill(tmp_path / "both", "adapter_model.safetensors", "adapter_config.json")
    files = "adapter_config.json, adapter_model.safetensors"
    assert describe_adapter(folder) == f"a PEFT adapter (of a model that it does not name; {files})"
    fields = {"peft_type": "LORA", "base_model_name_or_path": "a/b"}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    assert describe_adapter(folder) == f"a PEFT adapter (LORA of a/b; {files})"
    (folder / "adapter_config.json").write_text("[" * 200_000)
    assert describe_adapter(folder) == f"a PEFT adapter (of a model that it does not name; {files})"


def test_a_model_from_memory_takes_no_files_of_the_current_folder(
    tmp_path, out, caplog, monkeypatch
):
    monkeypatch.chdir(fill(tmp_path / "here", "tokenizer.json", "config.json"))
    copy_files(dataclasses.replace(ORIGIN, directory=""), out)
    assert (files_of(out), caplog.messages) == (set(), [])
