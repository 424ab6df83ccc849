"""Bases of adapters: found by name, given, or missing; and what is an adapter at all."""

import json

import pytest

from jaxllm.interop import CheckpointError
from jaxllm.interop.adapters.merging import describe_run, find_base, is_adapter


def test_the_base_is_the_one_given_or_named(tmp_path):
    fields = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(fields))
    assert is_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="does not name the model that it adapts: give the"):
        find_base(tmp_path, None)
    file.write_text(json.dumps({**fields, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(CheckpointError, match="gone, which is not there: give the base"):
        find_base(tmp_path, True)
    assert find_base(tmp_path, tmp_path) == tmp_path
    file.write_text(json.dumps({**fields, "base_model_name_or_path": str(tmp_path)}))
    assert find_base(tmp_path, None) == tmp_path


def test_other_folders_are_no_adapters(tmp_path):
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is not a run with LoRA"):
        describe_run(tmp_path)
