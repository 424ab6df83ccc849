"""`strict=False` leaves out only fields that cannot change what transformers computes."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import random_model

from benchmarks.config_fields import as_text, catalogue, fields_read
from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.interop.families.common.config_fields import is_inert


@pytest.mark.pinned
def test_the_list_is_that_of_the_installed_transformers():
    stored = files("jaxllm.interop.families.huggingface") / "config_fields.json"
    assert stored.read_text() == as_text(catalogue())


def test_every_way_to_read_a_field_is_found():
    source = """
def forward(self, config):
    a = config.width + self.config.depth
    b = getattr(config, "causal", True)
    config.written = 1
    other.unread
    return text_config.rate if config.bos_token_id else self.own
"""
    found = dict(fields_read(source))
    assert found == {"width": [], "depth": [], "causal": [True], "rate": []}
    assert "own" in dict(fields_read(source, is_config=True))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("is_causal", False, False),
        ("is_causal", True, True),
        ("is_causal", None, False),
        ("quantization_config", {"bits": 4}, False),
        ("quantization_config", None, True),
        ("unsloth_version", "2025.1", True),
        ("auto_map", {"AutoModel": "x.Y"}, True),
        ("_attn_implementation", "eager", True),
    ],
)
def test_a_field_is_inert_unless_transformers_reads_another_value(name, value, expected):
    assert is_inert("llama", name, value) is expected


@pytest.fixture
def llama(tmp_path) -> Path:
    save_pretrained(random_model(head_dim=8), tmp_path / "llama")
    return tmp_path / "llama"


def add_fields(folder: Path, **given: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | given))


def logits_of_transformers(folder: Path, tokens: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def test_a_field_that_changes_the_mask_is_refused_without_strict_too(llama):
    tokens = np.arange(40)[None]
    causal = logits_of_transformers(llama, tokens)
    add_fields(llama, is_causal=False)
    assert not np.allclose(logits_of_transformers(llama, tokens), causal, atol=1e-2)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"is_causal=False.* the original model reads it"):
            load_pretrained(llama, strict=strict)


def test_fields_that_change_nothing_are_left_out_without_strict(llama, caplog):
    tokens = np.arange(40)[None]
    add_fields(llama, is_causal=True, unsloth_version="2025.1", use_mrope=False)
    ours = np.asarray(load_pretrained(llama, strict=False)(tokens).logits)
    np.testing.assert_allclose(ours, logits_of_transformers(llama, tokens), atol=1e-5)
    assert all(name in caplog.text for name in ("is_causal", "unsloth_version", "use_mrope"))
