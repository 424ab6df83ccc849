"""Options of `jaxllm convert --with-optimizer` that contradict each other."""

import pytest

from jaxllm.cli import main


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "run.yaml"], ["--config is for --with-optimizer"]),
        (["--optimizer", "a.pt"], ["--optimizer is for --with-optimizer"]),
        (["--with-optimizer"], ["into a run needs --config"]),
        (
            ["--with-optimizer", "--to", "meta", "--dtype", "bfloat16", "--step", "3"],
            [
                "--to meta: with its optimizer, what is PyTorch's becomes a run",
                "--dtype does not go with --with-optimizer into a run",
                "--step does not go with --with-optimizer into a run",
                "into a run needs --config",
            ],
        ),
    ],
)
def test_options_of_an_optimizer_that_do_not_fit(options, said, byte_model, tmp_path, capsys):
    assert main(["convert", str(byte_model), str(tmp_path / "out"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(any(text in line for line in lines) for text in said)
    assert not list(tmp_path.iterdir())


def test_options_of_an_optimizer_that_do_not_fit_a_run(byte_model, tmp_path, capsys):
    native, out = str(tmp_path / "native"), str(tmp_path / "out")
    assert main(["convert", str(byte_model), native, "--to", "native"]) == 0
    capsys.readouterr()
    options = ["--with-optimizer", "--config", "run.yaml", "--model-parallel", "2"]
    options += ["--optimizer-format", "dcp", "--parameter-names", "names.txt"]
    assert main(["convert", native, out, *options]) == 2
    said = "jaxllm: --{} does not go with --with-optimizer and a run"
    assert capsys.readouterr().err.splitlines() == [
        said.format("config"),
        said.format("model-parallel"),
        "jaxllm: --parameter-names is for a state_dict: dcp goes by names, in no order",
    ]
    assert main(["convert", native, out, "--with-optimizer"]) == 2
    assert "holds a model without optimizer state" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
