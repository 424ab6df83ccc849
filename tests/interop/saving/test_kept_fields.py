"""An exported config keeps every field of the original that the model has not changed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from encoder_decoder_cases import CASES as PAIRS
from hf_cases import CASES
from tiny import random_of

from jaxllm.config import with_fields
from jaxllm.interop import load_pretrained, save_pretrained


def save_case(case: Any, folder: Path, **fields: Any) -> dict[str, Any]:
    """Writes a checkpoint with more fields; returns its config."""
    case.build().save_pretrained(folder)
    return edit(folder, **fields)


def edit(folder: Path, **fields: Any) -> dict[str, Any]:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | fields
    config = {name: value for name, value in config.items() if value is not ...}
    file.write_text(json.dumps(config))
    return config


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def differences(one: dict, other: dict) -> dict[str, Any]:
    """Returns the fields of the second config that the first has not, or has otherwise."""
    assert not one.keys() - other.keys()
    return {name: value for name, value in other.items() if one.get(name, ...) != value}


def changed(folder: Path, changes: dict[str, Any]) -> Any:
    """Returns a model of a changed config that came from the folder."""
    model = load_pretrained(folder)
    new = random_of(with_fields(model.config, changes))
    new.origin = model.origin
    return new


QWEN = {
    "dtype": ...,
    "torch_dtype": "float32",
    "rope_parameters": ...,
    "layer_types": ...,
    "rope_theta": 1e6,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 28,
    "use_mrope": False,
}


@pytest.fixture
def qwen(tmp_path) -> Path:
    save_case(CASES["qwen2"], tmp_path / "qwen", **QWEN)
    return tmp_path / "qwen"


def test_what_a_model_does_not_use_is_kept(qwen, tmp_path):
    save_pretrained(load_pretrained(qwen), tmp_path / "out")
    assert config_of(tmp_path / "out") == config_of(qwen)


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope.theta": 5e5}, {"rope_theta": 5e5}),
        ({"norms.eps": 1e-4}, {"rms_norm_eps": 1e-4}),
        ({"vocab_size": 80}, {"vocab_size": 80}),
        ({"num_layers": 2}, {"num_hidden_layers": 2}),
    ],
    ids=str,
)
def test_a_change_changes_no_other_field(changes, expected, qwen, tmp_path):
    save_pretrained(changed(qwen, changes), tmp_path / "out")
    found = differences(config_of(qwen), config_of(tmp_path / "out"))
    assert found == expected
    assert load_pretrained(tmp_path / "out").config == changed(qwen, changes).config


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_another_dtype_is_written_where_the_original_says_it(name, qwen, tmp_path):
    other = "torch_dtype" if name == "dtype" else "dtype"
    edit(qwen, **{name: "float32", other: ...})
    save_pretrained(load_pretrained(qwen, dtype="bfloat16"), tmp_path / "out")
    found = differences(config_of(qwen), config_of(tmp_path / "out"))
    assert found == {name: "bfloat16"}


def test_a_dtype_that_was_not_the_stored_one_is_kept(qwen, tmp_path):
    edit(qwen, torch_dtype="bfloat16")
    save_pretrained(load_pretrained(qwen), tmp_path / "out")
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"


def test_an_untied_head_is_said_in_one_field(tmp_path):
    save_case(CASES["llama/tied-biases"], tmp_path / "in")
    save_pretrained(changed(tmp_path / "in", {"head.tied": False}), tmp_path / "out")
    found = differences(config_of(tmp_path / "in"), config_of(tmp_path / "out"))
    assert found == {"tie_word_embeddings": False}


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("case", "changes", "expected"),
    [
        ("llama/llama3", {"rope.theta": 7e5}, {"rope_theta": 7e5}),
        ("llama/llama3", {"rope.scaling.factor": 3.0}, {"factor": 3.0}),
        ("gpt_neox", {"rope.fraction": 0.75}, {"partial_rotary_factor": 0.75}),
        ("gemma3_text", {"rope.local_theta": 5e3}, {"sliding_attention": {"rope_theta": 5e3}}),
    ],
    ids=str,
)
def test_rope_of_version_5_keeps_its_spelling_if_it_changed(case, changes, expected, tmp_path):
    config = save_case(CASES[case], tmp_path / "in", unsloth_version="1")
    model = changed(tmp_path / "in", changes)
    save_pretrained(model, tmp_path / "out")
    found = differences(config, config_of(tmp_path / "out"))
    assert found.keys() == {"rope_parameters"}
    before, after = config["rope_parameters"], found["rope_parameters"]
    inner = [name for name in expected if isinstance(expected[name], dict)]
    nested = {name: before[name] | expected[name] for name in inner}
    assert after == before | expected | nested
    assert load_pretrained(tmp_path / "out").config == model.config


def test_another_kind_of_rope_is_written_as_version_5_does(tmp_path):
    save_case(CASES["llama/llama3"], tmp_path / "in")
    model = changed(tmp_path / "in", {"rope.scaling": None})
    save_pretrained(model, tmp_path / "out")
    after, theta = config_of(tmp_path / "out"), model.config.rope.theta
    assert after["rope_parameters"] == {"rope_theta": theta, "rope_type": "default"}
    assert "rope_theta" not in after


def test_another_name_of_a_field_changes_with_it(tmp_path):
    layers = PAIRS["bart"].arguments["encoder_layers"]
    save_case(PAIRS["bart"], tmp_path / "in", num_hidden_layers=layers)
    model = load_pretrained(tmp_path / "in")
    encoder = with_fields(model.config.encoder, num_layers=layers - 1)
    smaller = random_of(dataclasses.replace(model.config, encoder=encoder))
    smaller.origin = model.origin
    save_pretrained(smaller, tmp_path / "out")
    read = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert read.encoder_layers == layers - 1
    assert load_pretrained(tmp_path / "out").config == smaller.config


def test_a_start_token_of_the_generation_settings_stays_there(tmp_path):
    folder = tmp_path / "in"
    save_case(PAIRS["t5"], folder, decoder_start_token_id=...)
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 5}))
    model = load_pretrained(folder)
    assert model.config.start_token == 5
    save_pretrained(model, tmp_path / "out")
    assert config_of(tmp_path / "out") == config_of(folder)
    assert load_pretrained(tmp_path / "out").config.start_token == 5


def test_nested_configs_change_field_by_field(tmp_path):
    before = save_case(CASES["llama4"], tmp_path / "in")
    save_pretrained(load_pretrained(tmp_path / "in", dtype="bfloat16"), tmp_path / "out")
    after = config_of(tmp_path / "out")
    for part in ("text_config", "vision_config"):
        assert set(differences(before[part], after[part])) <= {"dtype", "torch_dtype"}
    rest = differences(before, after)
    assert rest.keys() <= {"dtype", "text_config", "vision_config"}
