"""Opening a checkpoint: of a known family, or of a model that a user's rules describe."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hf_cases import CASES
from safetensors.numpy import save_file

from jaxllm.interop import CheckpointError
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.loading.checkpoint import identify_family, open_checkpoint

RULES = SimpleNamespace(config=lambda fields: None, rules=[])


@pytest.fixture
def folder(tmp_path):
    save_file({"_orig_mod.w": np.ones((2, 3), np.float32)}, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"width": 3}))
    return tmp_path


def test_a_known_family_is_identified_by_its_config(tmp_path):
    CASES["llama"].build().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.family is LLAMA
    assert identify_family(tmp_path) == (LLAMA, checkpoint.config)
    assert "model.norm.weight" in checkpoint.tensors


def test_rules_describe_the_model_of_a_file_or_its_folder(folder):
    for path in (folder, folder / "weights.safetensors"):
        checkpoint = open_checkpoint(path, RULES)
        assert (checkpoint.path, checkpoint.config) == (folder, {"width": 3})
        assert list(checkpoint.tensors) == ["w"]  # without the prefix that torch.compile adds
        assert checkpoint.family.name == identify_family(path, RULES)[0].name == "rules"


def test_what_is_missing_is_named(folder):
    with pytest.raises(CheckpointError, match="nothing does not exist"):
        open_checkpoint(folder / "nothing", RULES)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"rules reads config\.json, which is not in"):
        open_checkpoint(folder, RULES)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        identify_family(folder)
