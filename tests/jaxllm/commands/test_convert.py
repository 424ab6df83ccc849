"""Tests of `jaxllm convert`."""

import numpy as np

from jaxllm.cli import main
from jaxllm.interop import load_pretrained


def test_converted_checkpoint_loads_again(byte_model, tmp_path, capsys):
    assert (
        main(
            [
                "convert",
                str(byte_model),
                str(tmp_path / "meta"),
                "--to",
                "meta",
                "--model-parallel",
                "2",
            ]
        )
        == 0
    )
    assert main(["convert", str(tmp_path / "meta"), str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size == (
        byte_model / "model.safetensors"
    ).stat().st_size
    a, b = (load_pretrained(folder) for folder in (byte_model, tmp_path / "hf"))
    np.testing.assert_array_equal(
        a.layers["0:3"].mlp.up_proj.kernel[...], b.layers["0:3"].mlp.up_proj.kernel[...]
    )
    capsys.readouterr()
    assert main(["convert", str(byte_model), str(tmp_path / "hf")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_adapters_are_asked_for_by_their_options(byte_model, tmp_path, capsys):
    out = str(tmp_path / "out")
    for arguments, status, complaint in (
        (["--base", "x"], 2, "--base: only with --merge"),
        (["--to", "peft", "--merge"], 2, "--merge: not with --to peft"),
        (["--to", "peft"], 1, "is not a run with LoRA"),
        (["--merge"], 1, "is no adapter, neither of PEFT nor of a run with LoRA"),
    ):
        assert main(["convert", str(byte_model), out, *arguments]) == status
        assert complaint in capsys.readouterr().err
