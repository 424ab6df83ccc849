"""Tensors outside of the model are carried along from files that may be gone."""

import dataclasses
import shutil

import pytest
import torch
import transformers
from hf_case import SIZES, randomize, stored

from jaxllm.checkpoint_origin import CARRIED, KEPT
from jaxllm.interop import CheckpointError, convert, load_pretrained, save_pretrained, verify
from jaxllm.interop.saving.carried import carried_by, find_carried, keep_carried

HEAD = "score.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "original"
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 1}, num_labels=2)
    randomize(transformers.LlamaForSequenceClassification(config)).save_pretrained(path)
    return path


def test_a_native_checkpoint_keeps_its_own_copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "source")
    model = load_pretrained(tmp_path / "source")
    save_pretrained(model, tmp_path / "native", format="native")
    shutil.rmtree(tmp_path / "source")
    assert (tmp_path / "native" / KEPT / CARRIED).is_file()
    convert(tmp_path / "native", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(folder)
    assert not (tmp_path / "back" / CARRIED).exists()


def test_verification_counts_them_as_round_trips(folder):
    found = verify(folder)
    assert found.ok
    assert {one.name: one.differing_bits for one in found.tensors}[HEAD] == 0


def test_tensors_that_are_gone_are_named(folder, tmp_path, caplog):
    model = load_pretrained(folder)
    assert carried_by(model.origin) == [HEAD]
    gone = dataclasses.replace(model.origin, checkpoint=str(tmp_path / "gone"))
    with pytest.raises(
        CheckpointError, match=f"gone, which the model came from, no longer.*{HEAD}"
    ):
        find_carried(gone)
    model.origin = gone
    save_pretrained(model, tmp_path / "out")
    keep_carried(gone, tmp_path)
    assert f"no longer has {HEAD}: written without them, as llama" in caplog.messages[-2]
    assert f"no longer has {HEAD}: written without them" in caplog.messages[-1]
    assert HEAD not in stored(tmp_path / "out")
    assert not (tmp_path / CARRIED).exists()


def test_another_family_has_no_place_for_them(tmp_path, caplog):
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 1, "head_dim": 8})
    original = randomize(transformers.LlamaForCausalLM(config))
    state = {**original.state_dict(), "v_head.summary.weight": torch.randn(1, 48)}
    original.save_pretrained(tmp_path / "original", state_dict=state)
    model = load_pretrained(tmp_path / "original")
    save_pretrained(model, tmp_path / "out", format="meta")
    assert "has no place for v_head.summary.weight: written without them, as" in caplog.messages[-1]
    convert(tmp_path / "original", tmp_path / "half", dtype="bfloat16")
    assert {dtype for dtype, _, _ in stored(tmp_path / "half").values()} == {torch.bfloat16}
