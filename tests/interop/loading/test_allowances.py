"""Config fields that the user has read otherwise than the file says, in Python and by commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import random_model

from jaxllm.cli import main
from jaxllm.interop import CheckpointError, inspect, load_pretrained, save_pretrained
from jaxllm.interop.loading.allowances import (
    allowance_notes,
    apply_allowances,
    suggest_allowances,
)
from jaxllm.interop.parity import check_checkpoint

CONFIG = {"causal": False, "act": "mish", "part": {"scale": 2, "rate": 1.0}}


@pytest.mark.parametrize(
    ("allow", "expected", "said"),
    [
        (["causal"], {"act": "mish", "part": {"scale": 2, "rate": 1.0}}, "taken as absent"),
        (["act=silu"], {**CONFIG, "act": "silu"}, "act='mish' is taken as 'silu', as allowed"),
        (["part.scale"], {**CONFIG, "part": {"rate": 1.0}}, "part.scale=2 is taken as absent"),
        (["part.scale=[1, 2]"], {**CONFIG, "part": {"scale": [1, 2], "rate": 1.0}}, "[1, 2]"),
        (["new=true"], {**CONFIG, "new": True}, "new=None is taken as True"),
        (["casual"], CONFIG, "casual is allowed, but absent; did you mean 'causal'?"),
        (["part.bias"], CONFIG, "part.bias is allowed, but absent"),
        (["causal=false"], CONFIG, None),
    ],
)
def test_fields_are_taken_as_absent_or_as_a_value(allow, expected, said):
    given = json.loads(json.dumps(CONFIG))
    found, lines = apply_allowances(given, allow)
    assert found == expected
    assert given == CONFIG
    assert (said is None and lines == ()) or said in lines[0]


def test_an_error_says_what_to_allow_and_what_would_happen():
    assert suggest_allowances({}) == []
    [line] = suggest_allowances({"causal": None, "act": "silu", "part.bias": False})
    assert line.startswith("--allow causal --allow act=silu --allow part.bias=false ")
    assert "as if causal were absent and act were 'silu' and part.bias were False" in line
    assert "the numbers are then not those of the original model" in line


def test_a_report_has_a_note_only_if_something_was_allowed():
    assert allowance_notes([]) == []
    assert "causal, act=silu" in allowance_notes(["causal", "act=silu"])[0]


@pytest.fixture
def plain(tmp_path) -> Path:
    save_pretrained(random_model(head_dim=8), tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def refused(plain, tmp_path) -> Path:
    """A checkpoint with a field that transformers reads and jaxllm does not implement."""
    folder = tmp_path / "refused"
    save_pretrained(load_pretrained(plain), folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_causal": False}))
    return folder


def logits(model) -> np.ndarray:
    return np.asarray(model(np.arange(40)[None]).logits)


def test_a_refused_field_can_be_allowed(plain, refused, tmp_path, caplog):
    with pytest.raises(CheckpointError, match=r"is_causal=False .*\n.*--allow is_causal .*allow="):
        load_pretrained(refused)
    assert not inspect(refused).ok
    model = load_pretrained(refused, allow=["is_causal"])
    assert "config.json: is_causal=False is taken as absent, as allowed" in caplog.text
    np.testing.assert_array_equal(logits(model), logits(load_pretrained(plain)))
    found = inspect(refused, allow=["is_causal"])
    assert found.ok
    assert any("is_causal=False is taken as absent" in note for note in found.notes)
    save_pretrained(model, tmp_path / "out")
    assert "is_causal" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "IT"],
        ["verify", "IT"],
        ["convert", "IT", "NEW"],
        ["generate", "IT", "--prompt", "a", "--max-new-tokens", "1", "--tokenizer", "bytes"],
        ["suggest", "IT"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_takes_allowances(command, tmp_path, capsys):
    save_pretrained(random_model(vocab_size=257, head_dim=8), tmp_path / "it")
    file = tmp_path / "it" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_causal": False}))
    places = {"IT": str(tmp_path / "it"), "NEW": str(tmp_path / "new")}
    given = [places.get(word, word) for word in command]
    is_read_regardless = command[0] == "suggest"  # it lists no problem of a config
    assert main(given) == (0 if is_read_regardless else 1)
    output = capsys.readouterr()
    assert is_read_regardless or "--allow is_causal" in output.err + output.out.replace("\n", " ")
    assert main([*given, "--allow", "is_causal"]) == 0


@pytest.mark.exhaustive
def test_parity_notes_what_was_allowed_and_compares_with_the_file(refused):
    report = check_checkpoint(refused, levels=("config", "logits"), allow=["is_causal"])
    assert not report.ok
    assert not report.verdicts["logits"]
    assert any("otherwise than the file says: is_causal" in note for note in report.notes)


def test_unexpected_tensors_are_ignored_without_strict(plain, tmp_path, capsys):
    tensors = load_file(plain / "model.safetensors") | {"extra.weight": torch.ones(3)}
    save_file(tensors, plain / "model.safetensors")
    assert main(["convert", str(plain), str(tmp_path / "new")]) == 1
    assert "extra.weight is unexpected" in capsys.readouterr().err
    assert main(["convert", str(plain), str(tmp_path / "new"), "--no-strict"]) == 0
    assert main(["inspect", str(plain), "--no-strict"]) == 0


@pytest.mark.exhaustive
def test_a_run_reads_its_first_weights_as_its_config_allows(tmp_path, capsys):
    save_pretrained(random_model(vocab_size=257, head_dim=8), tmp_path / "it")
    file = tmp_path / "it" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_causal": False}))
    run = {
        "output": str(tmp_path / "run"),
        "init_from": str(tmp_path / "it"),
        "allow": ["is_causal"],
        "steps": 1,
        "batch_size": 8,
        "mesh": {"data": 8},
        "seq_len": 16,
        "eval_batches": 1,
        "optimizer": {"warmup_steps": 0},
        "data": {"tokenizer": "bytes"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert "is_causal=False is taken as absent" in capsys.readouterr().err
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump({**run, "allow": []}))
    assert main(["train", str(tmp_path / "strict.yaml")]) == 1
