"""Conflicting options of `jaxllm convert --with-optimizer` are rejected."""

import pytest

from jaxllm.cli import main


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "run.yaml"], ["--config needs --with-optimizer"]),
        (["--optimizer", "a.pt"], ["--optimizer needs --with-optimizer"]),
        (["--with-optimizer"], ["--with-optimizer needs --config"]),
        (
            [
                "--with-optimizer",
                "--to",
                "meta",
                "--dtype",
                "bfloat16",
                "--step",
                "3",
                "--max-ram",
                "1GiB",
            ],
            [
                "--to meta cannot be used with --with-optimizer if SOURCE is a PyTorch checkpoint",
                "--dtype cannot be used with --with-optimizer if SOURCE is a PyTorch checkpoint",
                "--step cannot be used with --with-optimizer if SOURCE is a PyTorch checkpoint",
                "--max-ram cannot be used with --with-optimizer if SOURCE is a PyTorch checkpoint",
                "--with-optimizer needs --config",
            ],
        ),
    ],
)
def test_conflicting_optimizer_options_are_rejected(options, said, byte_model, tmp_path, capsys):
    assert main(["convert", str(byte_model), str(tmp_path / "out"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(any(text in line for line in lines) for text in said)
    assert not list(tmp_path.iterdir())


def test_optimizer_options_that_conflict_with_a_run_are_rejected(byte_model, tmp_path, capsys):
    native, out = str(tmp_path / "native"), str(tmp_path / "out")
    assert main(["convert", str(byte_model), native, "--to", "native"]) == 0
    capsys.readouterr()
    options = ["--with-optimizer", "--config", "run.yaml", "--model-parallel", "2"]
    options += ["--optimizer-format", "dcp", "--parameter-names", "names.txt"]
    assert main(["convert", native, out, *options]) == 2
    said = "jaxllm: --{} cannot be used with --with-optimizer if SOURCE is a run"
    assert capsys.readouterr().err.splitlines() == [
        said.format("config"),
        said.format("model-parallel"),
        "jaxllm: --parameter-names is for --optimizer-format state_dict: dcp identifies "
        "parameters by name, not by order",
    ]
    assert main(["convert", native, out, "--with-optimizer"]) == 2
    assert "holds a model without optimizer state" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_in_a_bucket_is_refused_by_name(tmp_path, capsys):
    source = "gs://bucket/run"
    assert main(["convert", source, str(tmp_path / "out"), "--with-optimizer"]) == 2
    assert "a folder of this machine: copy gs://bucket/run to one" in capsys.readouterr().err
