"""Tests of `jaxllm generate`."""

import json
import shutil

import numpy as np
import pytest
import source_cases

from jaxllm.cli import main


def test_generate_prints_the_prompt_and_its_continuation(byte_model, capsys):
    arguments = [
        "generate",
        str(byte_model),
        "--prompt",
        "def f(",
        "--max-new-tokens",
        "8",
        "--json",
    ]
    assert main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["prompt"] == "def f("
    assert 1 <= len(row["tokens"]) <= 8
    assert main([*arguments[:-1], "--temperature", "0.9", "--top-k", "9", "--top-p", "0.9"]) == 0
    assert capsys.readouterr().out.startswith("def f(")


@pytest.mark.parametrize("damage", ["delete", "rename", "reshape"])
def test_error_names_the_damaged_tensor(damage, byte_model, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(byte_model / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensor = tensors.pop(name)
    if damage == "rename":
        tensors[name.replace("k_proj", "key_proj")] = tensor
    if damage == "reshape":
        tensors[name] = np.concatenate([tensor, tensor])
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((byte_model / "config.json").read_text())
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 1
    err = capsys.readouterr().err
    assert name in err
    said = {
        "delete": "is missing",
        "rename": "did you mean",
        "reshape": "from the config, 32 in the file",
    }
    assert said[damage] in err


def test_beams_replace_sampling(byte_model, capsys):
    command = ["generate", str(byte_model), "--prompt", "ab", "--max-new-tokens", "4"]
    assert main([*command, "--beams", "3"]) == 0
    assert capsys.readouterr().out.startswith("ab")
    assert main([*command, "--beams", "3", "--temperature", "1"]) == 2
    assert "--beams cannot be combined with --temperature" in capsys.readouterr().err


def test_continuous_model_and_damaged_tokenizer_are_rejected(byte_model, tmp_path, capsys):
    vectors, damaged = tmp_path / "vectors", tmp_path / "damaged"
    vectors.mkdir()
    source_cases.write("components-autoregressive", vectors)
    assert main(["generate", str(vectors), "--prompt", "x"]) == 2
    assert "vectors is a SequenceModel, which has no tokens" in capsys.readouterr().err
    shutil.copytree(byte_model, damaged)
    (damaged / "tokenizer.json").write_text("{")
    assert main(["generate", str(damaged), "--prompt", "x"]) == 2
    assert "tokenizer.json is not a tokenizer.json" in capsys.readouterr().err
    text = tmp_path / "text.txt"
    text.write_text("some text")
    command = ["parity", str(damaged), "--text", str(text), "--output", str(tmp_path / "out")]
    assert main([*command, "--levels", "logits"]) == 1
    assert "tokenizer.json is not a tokenizer: " in capsys.readouterr().err
